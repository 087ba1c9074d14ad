"""Sets of directions: well-spread schemes and subsets, and peaks as dyads, which can be interpolated."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dmri_monai.qspace.tensor import tensor_metrics

__all__ = ["dyads_to_peaks", "peaks_to_dyads", "spread_directions", "spread_subset"]


@lru_cache(maxsize=16)
def spread_directions(n: int) -> Tensor:
    """(n, 3) unit vectors spread evenly as axes, the same every time, float64, on the half sphere z >= 0.

    Electrostatic repulsion of the points and their antipodes (Jones 1999,
    doi:10.1002/(SICI)1522-2594(199909)42:3<515::AID-MRM14>3.0.CO;2-Q), started from a spiral.
    """
    index = torch.arange(n, dtype=torch.float64) + 0.5
    z, angle = index / n, torch.pi * (1 + 5**0.5) * index
    points = torch.stack([(1 - z * z).sqrt() * angle.cos(), (1 - z * z).sqrt() * angle.sin(), z], dim=1)
    for step in torch.linspace(0.1, 0.001, 300, dtype=torch.float64):
        force = _repulsion(points)
        points = points + step / n**0.5 * force / force.norm(dim=1).max().clamp(min=1e-12)
        points = points / points.norm(dim=1, keepdim=True)
    return torch.where(points[:, 2:] < 0, -points, points)


def _repulsion(points: Tensor) -> Tensor:
    everything = torch.cat([points, -points])
    difference = points.unsqueeze(1) - everything.unsqueeze(0)
    distance = difference.norm(dim=2)
    keep = distance > 1e-9  # not from itself
    weight = torch.where(keep, distance.clamp(min=1e-9) ** -3, 0.0)
    # the own antipode pushes straight out of the sphere: harmless
    return (difference * weight.unsqueeze(2)).sum(1)


def spread_subset(directions: Tensor, n: int, first: int) -> Tensor:
    """(n,) indices of `directions` (N, 3), axes far from each other: from `first`, always the farthest next."""
    if not 0 < n <= len(directions):
        raise ValueError(f"cannot choose {n} of {len(directions)} directions")
    closeness = (directions.double() @ directions.double().T).abs()
    chosen = [first]
    nearest = closeness[first].clone()
    for _ in range(n - 1):
        nearest[chosen[-1]] = torch.inf
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, closeness[chosen[-1]])
    return torch.tensor(chosen)


def peaks_to_dyads(peaks: Tensor) -> Tensor:
    """(6n, X, Y, Z) dyads v v^T / |v| of peaks (3n, X, Y, Z), as xx, yy, zz, xy, xz, yz; 0 for zero and NaN
    peaks.

    Unlike signed axial vectors, dyads do not cancel under interpolation, and scale with the peak's length.
    """
    if peaks.ndim != 4 or len(peaks) % 3:
        raise ValueError(f"peaks have shape {tuple(peaks.shape)}, expected (3n, X, Y, Z)")
    x, y, z = peaks.nan_to_num(0.0).unflatten(0, (-1, 3)).unbind(1)
    length = (x * x + y * y + z * z).sqrt().clamp(min=1e-20)
    return torch.stack([q / length for q in (x * x, y * y, z * z, x * y, x * z, y * z)], dim=1).flatten(0, 1)


def dyads_to_peaks(dyads: Tensor, min_length: float = 0.0) -> Tensor:
    """(3n, X, Y, Z) peaks of dyads (6n, X, Y, Z): the principal eigenvector times its eigenvalue.

    Peaks of a length of at most `min_length` are NaN ("none"), the convention of MRtrix.
    """
    if dyads.ndim != 4 or len(dyads) % 6:
        raise ValueError(f"dyads have shape {tuple(dyads.shape)}, expected (6n, X, Y, Z)")
    metrics = tensor_metrics(dyads.unflatten(0, (-1, 6)))
    peaks = torch.where(metrics.ad > min_length, metrics.v1 * metrics.ad, torch.nan)
    return peaks.flatten(0, 1)
