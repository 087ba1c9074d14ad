"""Noise level and signal dropout of a raw scan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.qspace.b0 import mean_b0
from dmri_monai.so3 import sh_basis

__all__ = ["Dropout", "dropped_slices", "estimate_snr"]

MAD_TO_SIGMA = 1.4826
MIN_LOSS = 0.15
MIN_DEVIATION = 6.0
MIN_VOXELS = 100  # a slice with less tissue has no stable mean


@dataclass(frozen=True)
class Dropout:
    """A slice of one volume with less signal than the other directions predict; `gain` is the part left."""

    volume: int
    slice: int
    gain: float


def estimate_snr(image: Tensor, table: GradientTable, mask: Tensor) -> float | None:
    """SNR of one b0 volume: median over `mask` (X, Y, Z) of mean b0 over sigma; None with fewer than two b0.

    image: (N, X, Y, Z).  sigma is the robust spread of differences of successive b0 volumes over sqrt(2),
    each scaled to the same median first, so that drift of the whole volume does not count as noise.
    """
    rows = torch.nonzero(table.b0_mask).flatten()
    if len(rows) < 2 or not mask.any():
        return None
    b0 = image[rows][:, mask].double()
    b0 = b0 * (b0.median() / b0.median(dim=1, keepdim=True).values)
    differences = b0.diff(dim=0).flatten()
    sigma = MAD_TO_SIGMA * (differences - differences.median()).abs().median() / 2**0.5
    if sigma <= 0:
        return None
    return float(mean_b0(image, table.bvals, table.b0_threshold)[mask].double().median() / sigma)


def dropped_slices(image: Tensor, table: GradientTable, mask: Tensor, axis: int) -> list[Dropout]:
    """Slices across spatial `axis` (0, 1 or 2) that lost signal in single volumes, worst first.

    image: (N, X, Y, Z); mask: (X, Y, Z).  In each shell and slice the mean signal is a smooth function of
    direction: even harmonics up to l = 2 are fitted robustly, and a volume counts as dropped where it lacks
    more than 15 % and six robust standard deviations of what they predict.  A volume that is darker as a
    whole is not a dropped slice.
    """
    means, usable = _slice_means(image, mask, axis)
    found = []
    for indices in [torch.nonzero(table.b0_mask).flatten(), *[s.indices for s in table.shells()]]:
        if len(indices) < 4 or not usable.any():
            continue
        gain = _gain(means[indices][:, usable], table.bvecs[indices])
        spread = MAD_TO_SIGMA * (gain - 1).abs().median().clamp(min=1e-3)
        bad = (gain < 1 - MIN_LOSS) & ((1 - gain) > MIN_DEVIATION * spread)
        where = torch.nonzero(usable).flatten()
        for row, column in torch.nonzero(bad).tolist():
            found.append(Dropout(int(indices[row]), int(where[column]), round(float(gain[row, column]), 3)))
    return sorted(found, key=lambda d: d.gain)


def _slice_means(image: Tensor, mask: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean signal (N, S) of each slice inside the mask, and which slices (S,) hold enough of it."""
    other = [a for a in range(3) if a != axis]
    count = mask.sum(dim=other)
    total = torch.stack([(volume * mask).double().sum(dim=other) for volume in image])
    return total / count.clamp(min=1), count >= MIN_VOXELS


def _gain(means: Tensor, bvecs: Tensor) -> Tensor:
    """Observed over predicted slice means (M, S), each volume's overall level taken out."""
    level = means / means.median(dim=0, keepdim=True).values.clamp(min=1e-12)
    level = level / level.median(dim=1, keepdim=True).values.clamp(min=1e-12)
    predicted = _robust_fit(level, bvecs)
    return level / predicted.clamp(min=1e-12)


def _robust_fit(level: Tensor, bvecs: Tensor, rounds: int = 10) -> Tensor:
    """Fit of `level` (M, S) by l <= 2 harmonics of `bvecs` (M, 3), Tukey's biweight; else a median."""
    basis = sh_basis(bvecs, 2).double() if len(bvecs) >= 18 and bvecs.norm(dim=1).min() > 0.5 else None
    if basis is None or torch.linalg.matrix_rank(basis, rtol=1e-3) < basis.shape[1]:
        return level.median(dim=0, keepdim=True).values.expand_as(level)
    weights, fitted = torch.ones_like(level), level
    for _ in range(rounds):
        weighted = weights.T[:, :, None] * basis  # (S, M, 6)
        ridge = 1e-9 * torch.eye(basis.shape[1], dtype=basis.dtype)
        coefficients = torch.linalg.solve(weighted.mT @ basis + ridge, weighted.mT @ level.T[:, :, None])
        fitted = (basis @ coefficients).squeeze(-1).T
        residual = level - fitted
        scale = (MAD_TO_SIGMA * residual.abs().median(dim=0).values).clamp(min=1e-4)
        weights = (1 - (residual / (4.685 * scale)).clamp(-1, 1).square()).square()
    return fitted
