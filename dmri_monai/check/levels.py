"""Level of every volume in tissue, which is found from all volumes together, so that no label is trusted.

A voxel is tissue by the median over volumes of its signal relative to each volume's mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Levels", "measure_levels"]

MAX_VOXELS = 50_000  # sampled for the levels
TISSUE = 0.3  # of the 98th percentile
# Air is as bright as that where most volumes are little above noise (b = 3000, SNR 8 at b0). It is the darkest third of
# a head, alike within ALIKE but not nearly as bright as MOST; in a block without air that is tissue of several kinds.
ALIKE, ABOVE_AIR, MOST = 1.25, 1.5, 0.7


@dataclass(frozen=True)
class Levels:
    """What the volumes hold: log level (N,) of each, and a sample (N, M) of their signal in tissue, at least 1e-6."""

    log: Tensor
    sample: Tensor


def measure_levels(signal: Tensor) -> Levels:
    """Levels of `signal` (N, X, Y, Z), none of whose volumes is empty."""
    flat = signal.reshape(len(signal), -1)
    sample = flat[:, _spread(flat.shape[1])].float()
    relative = (sample / sample.mean(dim=1, keepdim=True).clamp(min=1e-12)).median(dim=0).values
    tissue = sample[:, relative > _least(relative)]
    floor = 1e-6 * float(sample.mean())
    tissue = (tissue if tissue.shape[1] else sample).clamp(min=floor)
    return Levels(tissue.median(dim=1).values.double().log(), tissue)


def _least(relative: Tensor) -> float:
    """How bright (M,) voxels, relative to their volumes, must be to count as tissue."""
    air, third, bright = relative.quantile(relative.new_tensor([0.1, 0.3, 0.98])).tolist()
    is_air = third < ALIKE * air and ABOVE_AIR * air < MOST * bright
    return max(TISSUE * bright, ABOVE_AIR * air if is_air else 0.0)


def _spread(n: int) -> Tensor:
    """At most MAX_VOXELS of n voxels, always the same: one in each of as many equal parts, anywhere in it.

    A constant stride would share factors with some grids, and see few of their slices.
    """
    if n <= MAX_VOXELS:
        return torch.arange(n)
    within = torch.rand(MAX_VOXELS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ((torch.arange(MAX_VOXELS) + within) * (n / MAX_VOXELS)).long().clamp(max=n - 1)
