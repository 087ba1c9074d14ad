"""Acquisition protocols drawn at random: shells of any b-value and number of directions, and Cartesian grids."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.qspace.direction_sets import spread_directions

__all__ = ["draw_protocol", "played_out"]

USUAL_B, UNUSUAL_B = (600.0, 3200.0), (300.0, 6000.0)  # s/mm²
DIRECTIONS = (6, 90)
MAX_MEASUREMENTS = 220
GRID_SHARE = 0.1
SCATTERED_SHARE = 0.05
GRID_RADII_SQUARED = (4, 5, 6, 8, 9, 10, 12, 13, 16)


def draw_protocol(rng: np.random.Generator) -> GradientTable:
    """A table of 1 to 8 shells, or (one in ten) a half Cartesian grid as diffusion spectrum imaging takes it, or (one
    in twenty) directions each at a b-value of its own.

    b = 600-3200 s/mm², one in six 300-6000; 6 to 90 directions a shell, evenly spread or with gaps, sometimes
    repeated; 1 to 12 b0 volumes.  World frame, randomly turned; b0 first.
    """
    kind = rng.random()
    if kind < GRID_SHARE:
        bvals, bvecs = _cartesian(rng)
    else:
        bvals, bvecs = _scattered(rng) if kind < GRID_SHARE + SCATTERED_SHARE else _shells(rng)
    n_b0 = int(rng.integers(1, 13))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    bvals = np.concatenate([np.zeros(n_b0), bvals])
    bvecs = np.concatenate([np.zeros((n_b0, 3)), bvecs @ turn])
    return GradientTable(torch.from_numpy(bvals), torch.from_numpy(bvecs))


def _shells(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    count = int(rng.choice([1, 2, 3, 4, 6, 8], p=[0.45, 0.25, 0.16, 0.08, 0.03, 0.03]))
    bvals: list[np.ndarray] = []
    bvecs: list[np.ndarray] = []
    for b in _shell_bvals(rng, count):
        directions = _directions(rng, most=DIRECTIONS[1] if count <= 4 else 30)
        if bvals and sum(map(len, bvals)) + len(directions) > MAX_MEASUREMENTS:
            break
        jitter = rng.choice([0.0, 0.003, 0.01])
        bvals.append(b * (1 + jitter * rng.normal(size=len(directions)).clip(-2, 2)))
        bvecs.append(directions)
    return np.concatenate(bvals), np.concatenate(bvecs)


def _shell_bvals(rng: np.random.Generator, count: int) -> list[float]:
    """Ascending b-values at least 200 s/mm² apart."""
    low, high = UNUSUAL_B if count > 4 or rng.random() < 1 / 6 else USUAL_B
    while True:
        drawn = np.sort(rng.uniform(low, high, size=count))
        if rng.random() < 0.3:  # what is most common
            drawn[0] = rng.uniform(700, 1300)
            drawn.sort()
        if count == 1 or np.diff(drawn).min() >= 200:
            return [float(b) for b in drawn]


def _directions(rng: np.random.Generator, most: int) -> np.ndarray:
    """(n, 3) evenly spread axes of either sign; one in three with gaps, one in ten repeated."""
    low, high = DIRECTIONS
    n = round(float(np.exp(rng.uniform(np.log(low), np.log(most)))))
    kind = rng.random()
    if kind < 0.33:
        whole = _spread(min(high, round(n * rng.uniform(1.1, 2.0))))
        directions = whole[rng.permutation(len(whole))[:n]]
    elif kind < 0.43 and 2 * n <= high:
        directions = np.tile(_spread(n), (2, 1))
    else:
        directions = _spread(n)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turned: np.ndarray = directions @ turn * rng.choice([-1.0, 1.0], (len(directions), 1))
    return turned


@cache
def _spread(n: int) -> np.ndarray:
    return spread_directions(n).numpy()


def _cartesian(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points of a cubic lattice in a ball, one of each antipodal pair; b grows with the square of the distance."""
    radius_squared = int(rng.choice(GRID_RADII_SQUARED))
    points = np.array(
        [p for p in product(range(-4, 5), repeat=3) if 0 < sum(c * c for c in p) <= radius_squared]
    )
    keys = points @ np.array([1, 10, 100])
    points = points[keys > 0].astype(float)
    length = np.linalg.norm(points, axis=1)
    bvals = rng.uniform(2000, 6000) * (length / length.max()) ** 2
    kept = rng.random(len(points)) < rng.uniform(0.6, 1.0)
    kept[:6] = True
    return bvals[kept], (points / length[:, None])[kept]


def _scattered(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Axes evenly spread over the sphere, their b-values anywhere in a range, evenly in b or in sqrt(b)."""
    directions = _directions(rng, most=DIRECTIONS[1])
    low, high = rng.uniform(300, 1000), rng.uniform(1500, 5000)
    power = rng.choice([1.0, 0.5])
    drawn: np.ndarray = rng.uniform(low**power, high**power, size=len(directions)) ** (1 / power)
    return drawn, directions


def played_out(table: GradientTable, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """bvals (N,) and bvecs (N, 3) as a scanner really plays them out: off by about 2 % and 1 degree."""
    bvecs = table.bvecs.numpy() + np.deg2rad(1.0) * rng.normal(size=(len(table), 3))
    bvecs /= np.linalg.norm(bvecs, axis=1, keepdims=True)
    bvals = table.bvals.numpy() * (1 + 0.02 * rng.normal())
    return torch.from_numpy(bvals), torch.from_numpy(bvecs)
