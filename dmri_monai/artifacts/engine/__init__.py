"""Random artifacts for raw diffusion scans: what is drawn, presets, records and replay.  Knows nothing of MONAI."""

from dmri_monai.artifacts.engine.artifact import Artifact
from dmri_monai.artifacts.engine.corruption import corrupt, ground_truth, replay, zero_invalid
from dmri_monai.artifacts.engine.presets import ARTIFACTS, Preset, describe_presets, load_preset, preset_files
from dmri_monai.artifacts.engine.random_distortion import EddyCurrents, FatShift, Susceptibility
from dmri_monai.artifacts.engine.random_intensity import (
    BiasField,
    Drift,
    SliceDropout,
    VenetianBlind,
    Vibration,
)
from dmri_monai.artifacts.engine.random_kspace import (
    Aliasing,
    Ghost,
    Gibbs,
    HermitianPartialFourier,
    PartialFourier,
    Spike,
    T2StarBlur,
    Zipper,
)
from dmri_monai.artifacts.engine.random_motion import GradientNonlinearity, Motion, SliceMotion
from dmri_monai.artifacts.engine.random_noise import Noise

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
