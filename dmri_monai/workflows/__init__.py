"""Named helpers the bundle configs call.

Importing them registers layers and networks, so that configs may say `monai.networks.nets.EquivariantUNet`.
"""

from dmri_monai.register import register
from dmri_monai.workflows.caching import DiskCache
from dmri_monai.workflows.checkpoint import Checkpoint, another, load_pretrained, load_weights
from dmri_monai.workflows.data import draw, scans, seed_everything, subjects
from dmri_monai.workflows.encoding import encode, thin
from dmri_monai.workflows.ensemble import RotationEnsemble, SplitUncertaintyd, ensemble_of, split_uncertainty
from dmri_monai.workflows.evaluation import compare, methods
from dmri_monai.workflows.handlers import EarlyStopping, Progress, ValidationPicture, shared
from dmri_monai.workflows.inferers import FullVolumeInferer, SymmetricWindowInferer, VolumeInferer
from dmri_monai.workflows.keys import check_keys
from dmri_monai.workflows.labels import (
    CheckLabeld,
    HarmonicsToPeaksd,
    HeadMaskd,
    IgnoreOutsided,
    LesionMapsd,
)
from dmri_monai.workflows.models import ARCHITECTURES, Model, build_network, place, prepare_batch
from dmri_monai.workflows.optimization import FreezeBody, cosine, parameter_groups
from dmri_monai.workflows.outputs import WriteResults
from dmri_monai.workflows.parallel import data_parallel, local_device, start_parallel, stop_parallel
from dmri_monai.workflows.precision import CpuAutocast, autocast, cuda_amp
from dmri_monai.workflows.pretraining import PretrainBatch, loss_of, lower_is_better, pretext_loss, pretrain
from dmri_monai.workflows.randomness import EpochSampler, SeededDataset, SeedEpochs, derive_seed
from dmri_monai.workflows.selection import Selection, select_by
from dmri_monai.workflows.tasks import TASKS, Task, task
from dmri_monai.workflows.tracking import LogMetrics, MLflowRun, current_config, default_store

__all__ = [
    "ARCHITECTURES",
    "TASKS",
    "CheckLabeld",
    "Checkpoint",
    "CpuAutocast",
    "DiskCache",
    "EarlyStopping",
    "EpochSampler",
    "FreezeBody",
    "FullVolumeInferer",
    "HarmonicsToPeaksd",
    "HeadMaskd",
    "IgnoreOutsided",
    "LesionMapsd",
    "LogMetrics",
    "MLflowRun",
    "Model",
    "PretrainBatch",
    "Progress",
    "RotationEnsemble",
    "SeedEpochs",
    "SeededDataset",
    "Selection",
    "SplitUncertaintyd",
    "SymmetricWindowInferer",
    "Task",
    "ValidationPicture",
    "VolumeInferer",
    "WriteResults",
    "another",
    "autocast",
    "build_network",
    "check_keys",
    "compare",
    "cosine",
    "cuda_amp",
    "current_config",
    "data_parallel",
    "default_store",
    "derive_seed",
    "encode",
    "ensemble_of",
    "draw",
    "load_pretrained",
    "load_weights",
    "local_device",
    "loss_of",
    "lower_is_better",
    "methods",
    "parameter_groups",
    "place",
    "prepare_batch",
    "pretext_loss",
    "pretrain",
    "scans",
    "seed_everything",
    "select_by",
    "shared",
    "split_uncertainty",
    "start_parallel",
    "stop_parallel",
    "subjects",
    "task",
    "thin",
]

register()
