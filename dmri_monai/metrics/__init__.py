"""Metrics a voxel and a subject, for MONAI's evaluators.

Dice needs nothing of its own: `monai.handlers.MeanDice`.  The metrics here hold one row of named values a subject;
`MetricHandler` attaches them to an evaluator and `SubjectTable` writes them, MONAI's own included.
"""

from dmri_monai.metrics.angles import AngularError, PolarAngleError
from dmri_monai.metrics.classes import ClassificationScore, ConfusionMatrix
from dmri_monai.metrics.distances import HausdorffDistanceMM
from dmri_monai.metrics.image_quality import MaskedPSNR, MaskedSSIM
from dmri_monai.metrics.metric_handler import MetricHandler
from dmri_monai.metrics.ranking import VoxelRanking
from dmri_monai.metrics.subject_metric import SubjectMetric
from dmri_monai.metrics.subject_table import SubjectTable, mean_sd
from dmri_monai.metrics.tensor_error import HarmonicTensorError, TensorError

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
