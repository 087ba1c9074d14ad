"""Metrics a voxel and a subject, for MONAI's evaluators.

Dice needs nothing of its own: `monai.handlers.MeanDice`.  The metrics here hold one row of named values a subject;
`MetricHandler` attaches them to an evaluator and `SubjectTable` writes them, MONAI's own included.
"""

from dmri_monai.metrics.classes import ClassificationScore, ConfusionMatrix
from dmri_monai.metrics.directions import AngularError, PolarAngleError
from dmri_monai.metrics.distances import HausdorffDistanceMM
from dmri_monai.metrics.handlers import MetricHandler
from dmri_monai.metrics.images import MaskedPSNR, MaskedSSIM
from dmri_monai.metrics.ranking import VoxelRanking
from dmri_monai.metrics.subject import SubjectMetric
from dmri_monai.metrics.tables import SubjectTable, mean_sd
from dmri_monai.metrics.tensor import HarmonicTensorError, TensorError

__all__ = [
    "AngularError",
    "ClassificationScore",
    "ConfusionMatrix",
    "HarmonicTensorError",
    "HausdorffDistanceMM",
    "MaskedPSNR",
    "MaskedSSIM",
    "MetricHandler",
    "PolarAngleError",
    "SubjectMetric",
    "SubjectTable",
    "TensorError",
    "VoxelRanking",
    "mean_sd",
]
