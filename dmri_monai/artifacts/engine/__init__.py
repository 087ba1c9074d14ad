"""Random artifacts for raw diffusion scans: what is drawn, presets, records and replay.  Knows nothing of MONAI."""

from dmri_monai.artifacts.engine.artifact import Artifact
from dmri_monai.artifacts.engine.catalogue import ARTIFACTS
from dmri_monai.artifacts.engine.corruption import corrupt, replay
from dmri_monai.artifacts.engine.presets import Preset, describe_presets, load_preset, preset_files
from dmri_monai.artifacts.engine.random_distortion import EddyCurrents, FatShift, Susceptibility
from dmri_monai.artifacts.engine.random_gradients import GradientNonlinearity
from dmri_monai.artifacts.engine.random_intensity import (
    BiasField,
    Drift,
    SliceDropout,
    VenetianBlind,
    Vibration,
)
from dmri_monai.artifacts.engine.random_kspace import Aliasing, HermitianPartialFourier, Spike, Zipper
from dmri_monai.artifacts.engine.random_line_filters import Ghost, Gibbs, PartialFourier, T2StarBlur
from dmri_monai.artifacts.engine.random_motion import Motion, SliceMotion
from dmri_monai.artifacts.engine.random_noise import Noise
from dmri_monai.artifacts.engine.raw_scan import zero_invalid
from dmri_monai.artifacts.engine.record import Record, ground_truth

__all__ = [
    "ARTIFACTS",
    "Aliasing",
    "Artifact",
    "BiasField",
    "Drift",
    "EddyCurrents",
    "FatShift",
    "Ghost",
    "Gibbs",
    "GradientNonlinearity",
    "HermitianPartialFourier",
    "Motion",
    "Noise",
    "PartialFourier",
    "Preset",
    "Record",
    "SliceDropout",
    "SliceMotion",
    "Spike",
    "Susceptibility",
    "T2StarBlur",
    "VenetianBlind",
    "Vibration",
    "Zipper",
    "corrupt",
    "describe_presets",
    "ground_truth",
    "load_preset",
    "preset_files",
    "replay",
    "zero_invalid",
]
