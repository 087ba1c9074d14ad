"""Named helpers the bundle configs call."""

from dmri_monai.workflows.checkpoint import Checkpoint, load_pretrained, load_weights
from dmri_monai.workflows.data import first, harmonic_channels, scans, seed_everything, subjects
from dmri_monai.workflows.evaluation import compare
from dmri_monai.workflows.handlers import EarlyStopping, Progress, ValidationPicture, shared
from dmri_monai.workflows.inferers import FullVolumeInferer
from dmri_monai.workflows.outputs import WriteSegmentations
from dmri_monai.workflows.precision import CpuAutocast, autocast, cuda_amp
from dmri_monai.workflows.pretraining import PretrainBatch, loss_of, lower_is_better, pretrain
from dmri_monai.workflows.randomness import EpochSampler, SeededDataset, SeedEpochs, derive_seed
from dmri_monai.workflows.tracking import LogMetrics, MLflowRun, current_config, default_store

__all__ = [
    "Checkpoint",
    "CpuAutocast",
    "EarlyStopping",
    "EpochSampler",
    "FullVolumeInferer",
    "LogMetrics",
    "MLflowRun",
    "PretrainBatch",
    "Progress",
    "SeedEpochs",
    "SeededDataset",
    "ValidationPicture",
    "WriteSegmentations",
    "autocast",
    "compare",
    "cuda_amp",
    "current_config",
    "default_store",
    "derive_seed",
    "first",
    "harmonic_channels",
    "load_pretrained",
    "load_weights",
    "loss_of",
    "lower_is_better",
    "pretrain",
    "scans",
    "seed_everything",
    "shared",
    "subjects",
]
