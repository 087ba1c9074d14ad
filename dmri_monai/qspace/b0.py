"""What the unweighted volumes tell of a scan: their mean, its level, where the head is, and where the brain."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD, cluster_shells, no_b0_message

__all__ = ["b0_reference", "brain_mask", "head_mask", "mean_b0"]


def mean_b0(
    image: Tensor,
    bvals: Tensor,
    b0_threshold: float = B0_THRESHOLD,
    valid: Tensor | None = None,
    *,
    without_b0: Literal["raise", "lowest shell"] = "raise",
) -> Tensor:
    """(X, Y, Z) float32 mean of the b0 volumes of `image` (N, X, Y, Z), whose b-values are `bvals` (N,) in s/mm².

    valid (N,) bool: volumes that are no padding.  without_b0: where no volume has b <= `b0_threshold`, ValueError,
    or the mean of the shell of lowest b, which shows where the head is but is no reference for S/S0.
    """
    rows = bvals <= b0_threshold if valid is None else (bvals <= b0_threshold) & valid
    if not rows.any():
        rows = _lowest_shell(bvals, b0_threshold, valid, without_b0)
    index = torch.nonzero(rows).flatten().to(image.device)
    return image.index_select(0, index).float().mean(dim=0)


def _lowest_shell(bvals: Tensor, b0_threshold: float, valid: Tensor | None, without_b0: str) -> Tensor:
    candidates = torch.arange(len(bvals), device=bvals.device) if valid is None else valid.nonzero().flatten()
    if without_b0 == "raise" or not len(candidates):
        raise ValueError(no_b0_message(bvals, b0_threshold))
    rows = torch.zeros_like(bvals, dtype=torch.bool)
    rows[candidates[cluster_shells(bvals[candidates], b0_threshold)[0].indices]] = True
    return rows


def b0_reference(b0: Tensor, brain: Tensor | None = None) -> Tensor:
    """Median of `b0` (X, Y, Z) inside `brain` (1, X, Y, Z), else above a tenth of its 99th percentile; 1 for none.

    Voxels are left out as NaN, not by their index: their number would have to come from the device.
    """
    flat = b0.flatten().nan_to_num()
    counted = flat > 0.1 * flat.kthvalue(max(1, round(0.99 * flat.numel()))).values
    if brain is not None:
        inside = brain.flatten() > 0
        counted = torch.where(inside.any(), inside, counted)
    median = torch.where(counted, flat, torch.nan).nanmedian()
    return torch.where(median > 0, median, 1.0)


def head_mask(b0: Tensor, fraction: float = 0.1) -> Tensor:
    """(X, Y, Z) bool: the head and no air, voxels of `b0` (X, Y, Z) above `fraction` of its 98th percentile.

    Rough on purpose: for statistics, pictures and maps it needs no anatomy.  The percentile is that of the positive
    voxels.  For the brain alone see :func:`brain_mask`.
    """
    positive = b0[b0 > 0]
    if positive.numel() == 0:
        return torch.zeros_like(b0, dtype=torch.bool)
    rank = max(1, round(0.98 * positive.numel()))
    return b0 > fraction * positive.flatten().kthvalue(rank).values


def brain_mask(b0: Tensor, *, median_radius: int = 2, numpass: int = 2) -> Tensor:
    """(X, Y, Z) bool: the brain without skull and scalp, by DIPY's median_otsu of the mean `b0` (X, Y, Z).

    median_radius: of the median filter, voxels; numpass: how often it is applied.
    """
    from dipy.segment.mask import median_otsu  # slow to import, and seldom needed

    _, mask = median_otsu(b0.detach().cpu().numpy(), median_radius=median_radius, numpass=numpass)
    return torch.from_numpy(np.asarray(mask, dtype=bool)).to(b0.device)
