"""Smooth random functions of world position: the source of every difference between two phantom subjects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

__all__ = ["SmoothField", "Warp", "plain_seed", "stage_rng"]

Seed = int | Sequence[int]


def stage_rng(seed: Seed, stage: str) -> np.random.Generator:
    """Independent generator for one stage of one subject: one stage's draws leave the others alone.

    ValueError for a seed that is no whole number, or below 0.
    """
    whole = plain_seed(seed)
    entropy = [whole] if isinstance(whole, int) else whole
    return np.random.default_rng(np.random.SeedSequence([*entropy, *stage.encode()]))


def plain_seed(seed: Seed) -> int | tuple[int, ...]:
    """`seed` in Python's own integers, which JSON knows.  ValueError for what is no whole number, or below 0."""
    entropy = list(seed) if isinstance(seed, Iterable) else [seed]
    if not all(isinstance(n, Integral) and n >= 0 for n in entropy):
        raise ValueError(f"seed: {seed}, expected whole numbers of at least 0")
    whole = tuple(map(int, entropy))
    return whole if isinstance(seed, Iterable) else whole[0]


@dataclass(frozen=True)
class SmoothField:
    """Sum of plane waves f(p) = sum_m a_m sin(k_m . p + phi_m): k (M, 3) rad/mm, phi (M,), a (M, C).

    Defined on all of space, so it does not know about any voxel grid, and its derivative is exact.
    """

    waves: Tensor
    phases: Tensor
    amplitudes: Tensor

    @classmethod
    def draw(
        cls, rng: np.random.Generator, *, n_waves: int, wavelength_mm: tuple[float, float], channels: int = 1
    ) -> SmoothField:
        """Unit variance per channel; wavelengths uniform in `wavelength_mm`, directions on the sphere."""
        directions = rng.normal(size=(n_waves, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        waves = directions * 2 * np.pi / rng.uniform(*wavelength_mm, size=(n_waves, 1))
        amplitudes = rng.normal(size=(n_waves, channels))
        amplitudes *= np.sqrt(2.0 / (amplitudes**2).sum(axis=0))
        phases = rng.uniform(0, 2 * np.pi, n_waves)
        return cls(*(torch.tensor(a, dtype=torch.float32) for a in (waves, phases, amplitudes)))

    def __call__(self, points: Tensor) -> Tensor:
        """(P, 3) mm -> (P, C)."""
        angle = points @ self.waves.T.to(points) + self.phases.to(points)
        return angle.sin() @ self.amplitudes.to(points)

    def jacobian(self, points: Tensor) -> Tensor:
        """(P, 3) mm -> (P, C, 3), per mm."""
        angle = points @ self.waves.T.to(points) + self.phases.to(points)
        outer = self.amplitudes.unsqueeze(2) * self.waves.unsqueeze(1)
        return torch.einsum("pm,mcd->pcd", angle.cos(), outer.to(points))


@dataclass(frozen=True)
class Warp:
    """Smooth invertible map from world to template millimetres: p = L (x - c), then p + u(p).

    Invertible because the summed gradient of u stays below `MAX_GRADIENT` < 1 everywhere.
    """

    linear: Tensor
    centre: Tensor
    displacement: SmoothField

    MAX_GRADIENT = 0.45

    @classmethod
    def draw(cls, rng: np.random.Generator, *, n_waves: int = 8) -> Warp:
        """Head size +-5 % per axis, pose to 8 degrees and 3 mm, displacements of a few mm."""
        size = rng.uniform(0.95, 1.05, 3)
        linear = np.diag(1 / size) @ rotation(rng, max_degrees=8.0)
        field = SmoothField.draw(rng, n_waves=n_waves, wavelength_mm=(55.0, 120.0), channels=3)
        steepness = (field.amplitudes.norm(dim=1) * field.waves.norm(dim=1)).sum()
        field = SmoothField(field.waves, field.phases, field.amplitudes * (cls.MAX_GRADIENT / steepness))
        centre = torch.tensor(rng.uniform(-3, 3, 3), dtype=torch.float32)
        return cls(torch.tensor(linear, dtype=torch.float32), centre, field)

    def to_template(self, points_world: Tensor) -> Tensor:
        """(P, 3) world mm -> (P, 3) template mm."""
        p = (points_world - self.centre.to(points_world)) @ self.linear.T.to(points_world)
        return p + self.displacement(p)

    def directions_to_world(self, points_world: Tensor, directions: Tensor) -> Tensor:
        """(P, 3) world mm, (P, F, 3) template directions -> (P, F, 3) unit world directions, v ~ J^-1 t."""
        p = (points_world - self.centre.to(points_world)) @ self.linear.T.to(points_world)
        gradient = self.displacement.jacobian(p) + torch.eye(3).to(p)
        world = torch.linalg.solve(gradient @ self.linear.to(p), directions.mT).mT
        return torch.nn.functional.normalize(world, dim=-1)


def rotation(rng: np.random.Generator, max_degrees: float) -> np.ndarray:
    """(3, 3) rotation about a uniform axis by an angle uniform in [0, max_degrees]."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    angle = np.deg2rad(rng.uniform(0, max_degrees))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turn: np.ndarray = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turn
