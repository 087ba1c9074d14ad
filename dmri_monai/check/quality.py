"""Noise level and signal dropout of a raw scan."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.qspace.b0 import mean_b0

__all__ = ["Dropout", "dropped_slices", "estimate_snr"]

MAD_TO_SIGMA = 1.4826
MIN_LOSS = 0.2
MIN_DEVIATION = 6.0
MIN_DIRECTIONS = 18  # with fewer a robust fit of six numbers is none
MIN_VOXELS = 100  # a slice with less tissue has no stable mean
NEIGHBOURS = (
    -2,
    -1,
    1,
    2,
)  # slices that tell what a slice should hold; one without them on both sides is not judged


@dataclass(frozen=True)
class Dropout:
    """A slice of one volume with less signal than the other directions predict; `gain` is the part left."""

    volume: int
    slice: int
    gain: float


def estimate_snr(signal: Tensor, table: GradientTable, mask: Tensor) -> float | None:
    """SNR of one b0 volume: median over `mask` (X, Y, Z) of mean b0 over sigma; None with fewer than two b0.

    signal: (N, X, Y, Z).  sigma is the robust spread of differences of successive b0 volumes over sqrt(2),
    each scaled to the same median first, so that drift of the whole volume does not count as noise.
    """
    rows = torch.nonzero(table.b0_mask).flatten()
    if len(rows) < 2 or not mask.any():
        return None
    b0 = signal[rows][:, mask].double()
    b0 = b0 * (b0.median() / b0.median(dim=1, keepdim=True).values)
    differences = b0.diff(dim=0).flatten()
    sigma = MAD_TO_SIGMA * (differences - differences.median()).abs().median() / 2**0.5
    if sigma <= 0:
        return None
    return float(mean_b0(signal, table.bvals, table.b0_threshold)[mask].double().median() / sigma)


def dropped_slices(signal: Tensor, table: GradientTable, mask: Tensor, axis: int) -> list[Dropout]:
    """Slices across spatial `axis` (0, 1 or 2) that lost signal in single volumes, worst first.

    signal: (N, X, Y, Z); mask: (X, Y, Z).  In each shell and slice the mean signal is a smooth function of
    direction: a quadratic form is fitted robustly.  What is left of it is compared with the slices around in the same
    volume, because movement and eddy currents change neighbouring slices alike and a dropout does not.  A slice counts
    as dropped where both ways it lacks more than 20 %, and more than six robust standard deviations of its own and
    of all slices.  The outermost slices, which movement shifts in and out of the field of view, are not judged;
    nor is a volume that is darker as a whole.
    """
    means, usable = _slice_means(signal, mask, axis)
    found = []
    for indices in [torch.nonzero(table.b0_mask).flatten(), *[s.indices for s in table.shells()]]:
        if len(indices) < 4 or int(usable.sum()) < 2 * len(NEIGHBOURS):
            continue
        gain = torch.full_like(means[indices], torch.nan)
        gain[:, usable] = _gain(means[indices][:, usable], table.bvecs[indices])
        local = gain / _around(gain)
        bad = (gain < 1 - MIN_LOSS) & (local < 1 - MIN_LOSS)
        bad &= (1 - local) > MIN_DEVIATION * _spread(local)
        for row, column in torch.nonzero(bad).tolist():
            found.append(Dropout(int(indices[row]), column, round(float(gain[row, column]), 3)))
    return sorted(found, key=lambda d: d.gain)


def _slice_means(signal: Tensor, mask: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean signal (N, S) of each slice inside the mask, and which slices (S,) hold enough of it."""
    other = [a for a in range(3) if a != axis]
    count = mask.sum(dim=other)
    weight = mask.float()
    total = torch.stack([(volume * weight).sum(dim=other).double() for volume in signal])
    return total / count.clamp(min=1), count >= MIN_VOXELS


def _around(gain: Tensor) -> Tensor:
    """(M, S) median gain of the slices around each, NaN where one side has none."""
    padded = torch.nn.functional.pad(gain, (2, 2), value=torch.nan)
    n = gain.shape[1]
    near = torch.stack([padded[:, 2 + step : 2 + step + n] for step in NEIGHBOURS])
    sides = near[:2].isfinite().any(0) & near[2:].isfinite().any(0)
    return torch.where(sides, near.nanquantile(0.5, dim=0), torch.nan)


def _spread(local: Tensor) -> Tensor:
    """(S,) robust standard deviation of `local` (M, S), of each slice over the volumes, at least that of all."""
    deviation = (local - 1).abs()
    own, every = deviation.nanmedian(dim=0).values, deviation.nanmedian()
    return MAD_TO_SIGMA * torch.maximum(own, every).clamp(min=1e-3)


def _gain(means: Tensor, bvecs: Tensor) -> Tensor:
    """Observed over predicted slice means (M, S), each volume's overall level taken out."""
    level = means / means.median(dim=0, keepdim=True).values.clamp(min=1e-12)
    level = level / level.median(dim=1, keepdim=True).values.clamp(min=1e-12)
    predicted = _robust_fit(level, bvecs)
    return level / predicted.clamp(min=1e-12)


def _robust_fit(level: Tensor, bvecs: Tensor, rounds: int = 10) -> Tensor:
    """Fit of `level` (M, S) by a quadratic form of `bvecs` (M, 3), Tukey's biweight; else a median."""
    x, y, z = bvecs.double().T
    basis = torch.stack([x * x, y * y, z * z, x * y, x * z, y * z], dim=1)
    if (
        len(bvecs) < MIN_DIRECTIONS
        or bvecs.norm(dim=1).min() < 0.5
        or torch.linalg.matrix_rank(basis, rtol=1e-3) < basis.shape[1]
    ):
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
