"""Fibre orientation densities as even harmonics: made of peaks, and their own peaks.

The density of a voxel is a function on the sphere whose integral is the volume fraction of the fibres.
"""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor

from dmri_monai.qspace.peaks import harmonic_peaks
from dmri_monai.qspace.shell_fit import sh_orders
from dmri_monai.so3 import even_orders, n_coefficients, sh_basis

__all__ = [
    "DENSITY_IRREPS",
    "DENSITY_ORDER",
    "DISPERSION",
    "density_of_peaks",
    "number_of_peaks",
    "peaks_of_density",
]

DENSITY_ORDER = 8
DENSITY_IRREPS = "+".join(f"1x{order}e" for order in even_orders(DENSITY_ORDER))
DISPERSION = 0.03  # rad² per axis, of peaks that do not say theirs
# what counts fibres best in simulated voxels (`benchmarks/peak_rule.py`)
RELATIVE = 0.2
ABSOLUTE = 0.05  # of the density: a coherent bundle that fills a voxel has about 2
SEPARATION_DEGREES = 25.0
LEAST_FRACTION = 0.05  # of fibres in a voxel, below which no peak is looked for


def density_of_peaks(peaks: Tensor, dispersion: float = DISPERSION) -> Tensor:
    """(45, ...) densities of peaks (3n, ...) whose length is their volume fraction, 0 or NaN for none; same frame.

    Each is spread by the heat kernel on the sphere: order l shrinks by exp(-l (l + 1) dispersion / 2).
    """
    vectors = peaks.unflatten(0, (-1, 3)).movedim(1, -1)  # (n, ..., 3)
    lengths = torch.nan_to_num(vectors.norm(dim=-1), nan=0.0)
    total = peaks.new_zeros(*vectors.shape[1:-1], n_coefficients(DENSITY_ORDER))
    for vector, length in zip(vectors, lengths, strict=True):
        there = length > 0
        total[there] += sh_basis(vector[there], DENSITY_ORDER).to(total) * length[there].unsqueeze(-1)
    orders = sh_orders(DENSITY_ORDER).to(total)
    return (total * torch.exp(-orders * (orders + 1) / 2 * dispersion)).movedim(-1, 0)


def peaks_of_density(density: Tensor, count: int = 3) -> Tensor:
    """(3 count, ...) peaks of densities (n_coef, ...), largest first, in the same frame; NaN for none.

    A peak's length is the density there.  Peaks below `RELATIVE` of the voxel's largest or `ABSOLUTE`, or within
    `SEPARATION_DEGREES` of a larger one, do not count; nor do voxels with less fibre than `LEAST_FRACTION`.
    """
    flat = density.flatten(1)
    fibres = torch.nonzero(flat[0] * sqrt(4 * pi) > LEAST_FRACTION).flatten()
    found = harmonic_peaks(
        flat[:, fibres],
        count=count,
        relative=RELATIVE,
        absolute=ABSOLUTE,
        separation_degrees=SEPARATION_DEGREES,
    )
    vectors = (found.directions * found.amplitudes.unsqueeze(2)).where(
        found.amplitudes.unsqueeze(2) > 0, torch.nan
    )
    peaks = flat.new_full((3 * count, flat.shape[1]), torch.nan)
    peaks[:, fibres] = vectors.flatten(1).T.to(peaks)
    return peaks.unflatten(1, density.shape[1:])


def number_of_peaks(peaks: Tensor) -> Tensor:
    """(...) uint8, how many of the peaks (3n, ...) are there: those that are not NaN."""
    return peaks[::3].isfinite().sum(0).to(torch.uint8)
