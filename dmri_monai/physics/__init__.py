"""Artifact physics: deterministic functions of magnitude images, any device and float type,"""

from dmri_monai.physics.noise import noncentral_chi, rician
from dmri_monai.physics.signal import (
    bias_field,
    drift,
    multiband_set,
    slice_dropout,
    venetian_blind,
    vibration,
)

__all__ = [
    "bias_field",
    "drift",
    "multiband_set",
    "noncentral_chi",
    "rician",
    "slice_dropout",
    "venetian_blind",
    "vibration",
]
