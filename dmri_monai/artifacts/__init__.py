"""Artifact physics: deterministic functions of magnitude images (..., X, Y, Z), any device and float type.

Order in a scan: signal, then distortion, then k-space, then noise last.
"""

from dmri_monai.artifacts.distortion import displace, eddy, eddy_modes, fat_shift, susceptibility
from dmri_monai.artifacts.intensity import (
    bias_field,
    drift,
    multiband_set,
    slice_dropout,
    venetian_blind,
    vibration,
)
from dmri_monai.artifacts.kspace import (
    aliasing,
    ghost,
    gibbs,
    line_ghost,
    partial_fourier,
    spike,
    t2star_blur,
    zipper,
)
from dmri_monai.artifacts.motion import (
    acquisition_order,
    gradient_nonlinearity,
    move,
    rotation_matrix,
    shuffle_slices,
    turn_signal,
)
from dmri_monai.artifacts.noise import g_factor_sigma, noncentral_chi, rician
from dmri_monai.artifacts.spatial_fields import (
    blob,
    gradient_deviation,
    polynomial_field,
    scalp_rim,
    susceptibility_field,
)

__all__ = [
    "acquisition_order",
    "aliasing",
    "bias_field",
    "blob",
    "displace",
    "drift",
    "eddy",
    "eddy_modes",
    "fat_shift",
    "g_factor_sigma",
    "ghost",
    "gibbs",
    "gradient_deviation",
    "gradient_nonlinearity",
    "line_ghost",
    "move",
    "multiband_set",
    "noncentral_chi",
    "partial_fourier",
    "polynomial_field",
    "rician",
    "rotation_matrix",
    "scalp_rim",
    "shuffle_slices",
    "slice_dropout",
    "spike",
    "susceptibility",
    "susceptibility_field",
    "t2star_blur",
    "turn_signal",
    "venetian_blind",
    "vibration",
    "zipper",
]
