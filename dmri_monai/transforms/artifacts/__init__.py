"""Random artifacts for raw diffusion scans: presets, records, replay, and the MONAI transform."""

from dmri_monai.transforms.artifacts.compose import corrupt, ground_truth, replay, zero_invalid
from dmri_monai.transforms.artifacts.dictionary import RandDWIArtifactsd, artifact_slices
from dmri_monai.transforms.artifacts.distortion import EddyCurrents, FatShift, Susceptibility
from dmri_monai.transforms.artifacts.kspace import (
    Aliasing,
    Ghost,
    Gibbs,
    HermitianPartialFourier,
    PartialFourier,
    Spike,
    T2StarBlur,
    Zipper,
)
from dmri_monai.transforms.artifacts.model import Artifact
from dmri_monai.transforms.artifacts.motion import GradientNonlinearity, Motion, SliceMotion
from dmri_monai.transforms.artifacts.noise import Noise
from dmri_monai.transforms.artifacts.presets import (
    ARTIFACTS,
    Preset,
    describe_presets,
    load_preset,
    preset_files,
)
from dmri_monai.transforms.artifacts.signal import BiasField, Drift, SliceDropout, VenetianBlind, Vibration

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
    "RandDWIArtifactsd",
    "SliceDropout",
    "SliceMotion",
    "Spike",
    "Susceptibility",
    "T2StarBlur",
    "VenetianBlind",
    "Vibration",
    "Zipper",
    "artifact_slices",
    "corrupt",
    "describe_presets",
    "ground_truth",
    "load_preset",
    "preset_files",
    "replay",
    "zero_invalid",
]
