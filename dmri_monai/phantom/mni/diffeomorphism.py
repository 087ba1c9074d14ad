"""Random smooth diffeomorphism from a subject's world to the template."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.phantom.fields import SmoothField, Warp, rotation

__all__ = ["Diffeomorphism"]

CENTRE_MM = (0.0, -18.0, 8.0)  # of the template's brain; the world origin lies near it
SIZE = (0.82, 0.91)  # of the template, whose brain mask has 1.9 l: adults have 1.1 to 1.7 l
STAGES_MM = ((70.0, 180.0), (70.0, 180.0), (50.0, 120.0), (24.0, 50.0))  # wavelengths
WAVES = 8


@dataclass(frozen=True)
class Diffeomorphism:
    """World to template millimetres: an affine map, then displacements p + u(p), one after the other.

    Every stage is invertible because the summed gradient of its u stays below `Warp.MAX_GRADIENT` < 1.
    """

    linear: Tensor
    centre: Tensor
    stages: tuple[SmoothField, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Diffeomorphism:
        """Head size 0.82 to 0.91 of the template, +-4 % per axis, pose to 8 degrees and 3 mm."""
        size = rng.uniform(*SIZE) * rng.uniform(0.96, 1.04, 3)
        linear = np.diag(1 / size) @ rotation(rng, max_degrees=8.0)
        centre = rng.uniform(-3, 3, 3) - np.linalg.solve(linear, np.array(CENTRE_MM))
        stages = tuple(_stage(rng, wavelengths) for wavelengths in STAGES_MM)
        return cls(torch.from_numpy(linear).float(), torch.from_numpy(centre).float(), stages)

    def to_template(self, points_world: Tensor) -> Tensor:
        """(P, 3) world mm -> (P, 3) template mm."""
        p = (points_world - self.centre.to(points_world)) @ self.linear.T.to(points_world)
        for stage in self.stages:
            p = p + stage(p)
        return p

    def jacobian(self, points_world: Tensor) -> Tensor:
        """(P, 3) world mm -> (P, 3, 3) derivative of :meth:`to_template`."""
        p = (points_world - self.centre.to(points_world)) @ self.linear.T.to(points_world)
        total = self.linear.to(p).expand(len(p), 3, 3)
        for stage in self.stages:
            total = (stage.jacobian(p) + torch.eye(3).to(p)) @ total
            p = p + stage(p)
        return total

    def directions_to_world(self, points_world: Tensor, directions: Tensor) -> Tensor:
        """(P, 3) world mm, (P, F, 3) template directions -> (P, F, 3) unit world directions, v ~ J^-1 t."""
        world = directions @ torch.linalg.inv(self.jacobian(points_world)).mT
        return torch.nn.functional.normalize(world, dim=-1)


def _stage(rng: np.random.Generator, wavelength_mm: tuple[float, float]) -> SmoothField:
    field = SmoothField.draw(rng, n_waves=WAVES, wavelength_mm=wavelength_mm, channels=3)
    steepness = (field.amplitudes.norm(dim=1) * field.waves.norm(dim=1)).sum()
    return SmoothField(field.waves, field.phases, field.amplitudes * (Warp.MAX_GRADIENT / steepness))
