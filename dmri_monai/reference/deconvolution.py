"""Constrained spherical deconvolution of one shell, and the peaks of any fibre orientation distribution, by DIPY."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable, Shell
from dmri_monai.so3 import even_orders, n_coefficients

__all__ = [
    "MAX_PEAKS",
    "PeakRule",
    "deconvolution_shell",
    "find_peaks",
    "most_anisotropic",
    "peak_sphere",
    "single_shell_model",
]

MAX_PEAKS = 3
MAX_ORDER = 8


@dataclass(frozen=True)
class PeakRule:
    """What counts as a peak of the fibre orientation distribution (our choice, no published standard).

    relative: of the voxel's largest peak; absolute: of the median largest peak of the single-fibre voxels;
    separation_degrees: between two peaks.  response_voxels: number of voxels of highest FA for the response.
    """

    relative: float = 0.3
    absolute: float = 0.2
    separation_degrees: float = 25.0
    response_voxels: int = 300


def deconvolution_shell(table: GradientTable) -> tuple[Shell, int]:
    """The shell that resolves the highest order (of two, the one with the higher b), and that order, at most 8."""
    if not table.b0_mask.any():
        raise ValueError(f"no b0 volume (b <= {table.b0_threshold:g} s/mm²)")
    best, order = None, 0
    for shell in table.shells():
        resolved = max(
            (k for k in even_orders(MAX_ORDER) if n_coefficients(k) <= len(shell.indices)), default=0
        )
        if resolved >= max(order, 4):
            best, order = shell, resolved
    if best is None:
        most = max((len(shell.indices) for shell in table.shells()), default=0)
        raise ValueError(f"the largest shell has {most} directions, deconvolution needs at least 15")
    return best, order


def single_shell_model(
    signal: np.ndarray, table: GradientTable, white: np.ndarray, shell: Shell, order: int
) -> tuple[Any, np.ndarray]:
    """DIPY's model of the b0 volumes and one `shell`, and the (X, Y, Z, M) signal to fit.

    signal (X, Y, Z, N); white (X, Y, Z) bool: the voxels of the single-fibre response.
    """
    from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel, response_from_mask_ssst

    rows = with_b0(table, shell.indices)
    gradients, part = table.select(rows).to_dipy(), signal[..., rows.numpy()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on DIPY's coming change of its default basis
        response, _ = response_from_mask_ssst(gradients, part, white)
        return ConstrainedSphericalDeconvModel(gradients, response, sh_order_max=order), part


def with_b0(table: GradientTable, indices: Tensor) -> Tensor:
    """Ascending indices of the b0 volumes and of `indices`."""
    b0 = torch.nonzero(table.b0_mask).flatten()
    return torch.cat([b0, indices]).sort().values


def peak_sphere() -> Any:
    """DIPY's sphere with points some 4 degrees apart: peaks are found among them."""
    from dipy.data import default_sphere

    return default_sphere.subdivide(n=1)


def find_peaks(
    model: Any, signal: np.ndarray, mask: np.ndarray, white: np.ndarray, rule: PeakRule
) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z, 3, 3) unit world directions and (X, Y, Z, 3) amplitudes, NaN for none.

    mask (X, Y, Z): voxels to fit; white (X, Y, Z): those whose median largest peak is the unit of amplitude.
    """
    from dipy.direction import peaks_from_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result: Any = peaks_from_model(
            model, signal, peak_sphere(), rule.relative, rule.separation_degrees, mask=mask, npeaks=MAX_PEAKS
        )
    values = np.where(result.peak_values > 0, result.peak_values, np.nan)
    reference = np.nanmedian(values[white, 0])
    return result.peak_dirs, np.where(values >= rule.absolute * reference, values, np.nan)


def most_anisotropic(fa: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
    """(X, Y, Z) bool: the `count` voxels of highest FA in the mask, at most a tenth; FA near 1 is noise."""
    candidates = np.where(mask & (fa < 0.95), fa, -1.0)
    n = max(1, min(count, int(mask.sum()) // 10))
    threshold = np.sort(candidates, axis=None)[-n]
    return (candidates >= threshold) & (candidates > 0)
