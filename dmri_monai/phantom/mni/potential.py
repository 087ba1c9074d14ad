"""Harmonic potential between two regions: its gradient fans out smoothly from one to the other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["potential"]


def potential(low: np.ndarray, high: np.ndarray, *, iterations: int = 40, levels: int = 3) -> np.ndarray:
    """(X, Y, Z) solution of Laplace's equation that is 0 on `low` and 1 on `high` (boolean), float32.

    Jacobi sweeps from coarse to fine: each grid starts from the solution of the next coarser one.
    """
    free = np.argwhere(~(low | high))
    box = tuple(slice(max(a - 1, 0), b + 2) for a, b in zip(free.min(0), free.max(0), strict=True))
    fixed = torch.from_numpy(np.stack([(low | high)[box], high[box]])).float()
    solution = high.astype(np.float32)
    solution[box] = _solve(fixed, iterations, levels).numpy()
    return solution


def _solve(fixed: Tensor, iterations: int, levels: int) -> Tensor:
    size = fixed.shape[1:]
    if levels > 1 and min(size) >= 16:
        coarse = torch.nn.functional.avg_pool3d(fixed.unsqueeze(0), 2, ceil_mode=True)[0]
        known = (coarse[0] > 0.5).float()
        coarse = torch.stack([known, (coarse[1] > 0.25).float() * known])
        below = _solve(coarse, iterations, levels - 1)
        start = torch.nn.functional.interpolate(below[None, None], size=size, mode="trilinear")[0, 0]
    else:
        start = torch.full(size, 0.5)
    phi = torch.where(fixed[0] > 0, fixed[1], start)
    free = fixed[0, 1:-1, 1:-1, 1:-1] == 0  # the outermost layer stays as it is
    core = phi[1:-1, 1:-1, 1:-1]
    for _ in range(iterations):
        core.copy_(torch.where(free, _mean_of_neighbours(phi), core))
    return phi


def _mean_of_neighbours(p: Tensor) -> Tensor:
    """(X - 2, Y - 2, Z - 2) means of the six neighbours of the inner voxels."""
    total = p[2:, 1:-1, 1:-1] + p[:-2, 1:-1, 1:-1]
    for pair in ((p[1:-1, 2:, 1:-1], p[1:-1, :-2, 1:-1]), (p[1:-1, 1:-1, 2:], p[1:-1, 1:-1, :-2])):
        total += pair[0]
        total += pair[1]
    return total.mul_(1 / 6)
