"""Random artifacts for raw diffusion scans: presets, records, replay, and the MONAI transform."""

from dmri_monai.transforms.artifacts.compose import corrupt, ground_truth, item_seed, replay
from dmri_monai.transforms.artifacts.model import Artifact
from dmri_monai.transforms.artifacts.noise import Noise
from dmri_monai.transforms.artifacts.presets import ARTIFACTS, Preset, load_preset, preset_files
from dmri_monai.transforms.artifacts.signal import SliceDropout

__all__ = [
    "ARTIFACTS",
    "Artifact",
    "Noise",
    "Preset",
    "SliceDropout",
    "corrupt",
    "ground_truth",
    "item_seed",
    "load_preset",
    "preset_files",
    "replay",
]
