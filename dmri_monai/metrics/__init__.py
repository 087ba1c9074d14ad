"""Metrics per voxel and per subject, for MONAI's evaluators.

Dice needs nothing of its own: `monai.handlers.MeanDice`.  The metrics here hold one row of named values per subject;
`MetricHandler` attaches them to an evaluator, and `SubjectTable` writes them together with MONAI's own.
"""

from dmri_monai.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AngularError": "angles",
        "ClassificationScore": "classes",
        "ConfusionMatrix": "classes",
        "DensityCorrelation": "density_agreement",
        "FibreAgreement": "density_agreement",
        "FractionError": "fraction_error",
        "HarmonicTensorError": "tensor_error",
        "HausdorffDistanceMM": "distances",
        "MaskedPSNR": "image_quality",
        "MaskedSSIM": "image_quality",
        "MetricHandler": "metric_handler",
        "PolarAngleError": "angles",
        "SubjectMetric": "subject_metric",
        "SubjectTable": "subject_table",
        "TensorError": "tensor_error",
        "VoxelRanking": "ranking",
        "mean_sd": "subject_table",
    },
)
