"""How a head model lies in the scanner: pose, size, age, layers around the brain, field and receive bias, per scan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.phantom.fields import SmoothField, Warp, rotation
from dmri_monai.phantom.head_model import HeadModel

__all__ = ["HeadPose", "draw_pose"]

BRAIN_L = (1.15, 1.75)  # brain's hull
STAGES_MM = ((80.0, 180.0), (30.0, 70.0))  # wavelengths of the warps
STEP_MM = 2.0  # of the finite differences of the field


@dataclass(frozen=True)
class HeadPose:
    """One scan's version of a head.

    World to head millimetres: `linear` (3, 3) about `centre_world`, then displacements, then `centre_head`. bias
    (3,), border_noise: added to the evidence of white matter, grey matter and fluid.  ventricle_mm: ventricles
    grow by it.  layers_mm: outer bounds of fluid, meninges, skull, fat and skin, mm from the brain's hull.
    cavities (K, 4): world mm and radius; field_mm: displacement at the wall of each along `phase_world` (3,);
    dephasing: per mm/mm of the displacement's gradient.  coil: smooth log gain, surface: log gain 80 mm off the
    centre.
    """

    linear: Tensor
    centre_world: Tensor
    centre_head: Tensor
    stages: tuple[SmoothField, ...]
    bias: tuple[float, float, float]
    border_noise: float
    ventricle_mm: float
    layers_mm: tuple[float, ...]
    cavities: Tensor
    field_mm: Tensor
    phase_world: Tensor
    dephasing: float
    coil: SmoothField
    coil_strength: float
    surface: float

    @property
    def reach_mm(self) -> float:
        """Nothing but face and neck lies farther from the brain's hull."""
        return 2.2 * self.layers_mm[-1]

    def to_head(self, points_world: Tensor) -> Tensor:
        """(P, 3) world mm -> (P, 3) head mm."""
        p = (points_world - self.centre_world) @ self.linear.T
        for stage in self.stages:
            p = p + stage(p)
        return p + self.centre_head

    def jacobian(self, points_world: Tensor) -> Tensor:
        """(P, 3) world mm -> (P, 3, 3) derivative of :meth:`to_head`."""
        p = (points_world - self.centre_world) @ self.linear.T
        total = self.linear.expand(len(p), 3, 3)
        for stage in self.stages:
            total = (stage.jacobian(p) + torch.eye(3)) @ total
            p = p + stage(p)
        return total

    def distorted(self, points_world: Tensor) -> tuple[Tensor, Tensor]:
        """Where the signal seen at world points (P, 3) comes from, and its gain (P,).

        The field moves signal along phase encoding; where it stretches the image it thins it, where it changes within
        a voxel it dephases.  Receive bias multiplies.
        """
        here = self._shift(points_world)
        slope = []
        for direction in torch.eye(3):
            ends = [self._shift(points_world + s * STEP_MM * direction) for s in (-0.5, 0.5)]
            slope.append((ends[1] - ends[0]) / STEP_MM)
        gradient = torch.stack(slope, 1)
        density = (1 + gradient @ self.phase_world).clamp(0.15, 2.5)
        remaining = torch.exp(-self.dephasing * gradient.norm(dim=1))
        away = (points_world - self.centre_world).norm(dim=1) / 80
        bias = self.coil_strength * self.coil(points_world)[:, 0].clamp(-2, 2) + self.surface * (
            away**2 - 0.4
        )
        return points_world + here[:, None] * self.phase_world, density * remaining * torch.exp(
            bias.clamp(-1.5, 1.5)
        )

    def _shift(self, points_world: Tensor) -> Tensor:
        """(P,) mm along phase encoding: dipole fields of air-filled spheres, B0 along z (Schenck 1996)."""
        total = torch.zeros(len(points_world))
        for cavity, strength in zip(self.cavities, self.field_mm, strict=True):
            x, y, z = (points_world - cavity[:3]).unbind(1)
            square, radius = x**2 + y**2 + z**2, float(cavity[3])
            total += strength * radius**3 * (3 * z**2 - square) / (square + radius**2 / 2) ** 2.5
        return total


def draw_pose(
    rng: np.random.Generator, head: HeadModel, phase_world: np.ndarray, *, te_ms: float
) -> HeadPose:
    """A pose of `head` about the world's origin; mirrored in one scan of two, strongly tilted in one of five.

    phase_world (3,): unit vector of phase encoding.  A longer echo time dephases more.
    """
    target = float(rng.uniform(*BRAIN_L))
    size = (target / float(head.size_l)) ** (1 / 3) * rng.uniform(0.95, 1.05, 3)
    mirror = np.diag([float(rng.choice([-1, 1])), 1.0, 1.0])
    turn = rotation(rng, 40.0 if rng.random() < 0.2 else 12.0)
    linear = torch.from_numpy(np.diag(1 / size) @ mirror @ turn).float()
    centre = torch.from_numpy(rng.uniform(-8, 8, 3)).float()
    middle = head.centre.float()
    places = head.cavities[:, :3].float() - middle
    cavities = torch.cat([places @ torch.linalg.inv(linear).T + centre, head.cavities[:, 3:].float()], 1)
    aged = float(rng.beta(1.2, 3.0))  # 0 young to 1 old
    averaged = bool(head.averaged)
    readout = float(rng.choice([-1, 1]) * rng.gamma(2.0, 2.2))  # mm at the wall of a cavity
    layers = np.cumsum([
        rng.uniform(0.3, 1.0 + 2.5 * aged), rng.uniform(0.4, 1.6), rng.uniform(3.5, 8.0), rng.uniform(1.5, 7.0),
        rng.uniform(1.5, 4.0),
    ])  # fmt: skip
    return HeadPose(
        linear=linear,
        centre_world=centre,
        centre_head=middle,
        stages=tuple(_stage(rng, wavelength) for wavelength in STAGES_MM),
        bias=(0.0, float(rng.uniform(-0.12, 0.08)), float(rng.uniform(-0.08, 0.08) + 0.16 * aged)),
        border_noise=float(rng.uniform(0.02, 0.07 if averaged else 0.12)),
        ventricle_mm=float(rng.uniform(-1.0, 0.5) + 3.5 * aged),
        layers_mm=tuple(float(v) for v in layers),
        cavities=cavities,
        field_mm=torch.from_numpy(readout * rng.uniform(0.2, 1.6, len(cavities))).float(),
        phase_world=torch.from_numpy(phase_world).float(),
        dephasing=float(rng.uniform(0.5, 4.0) * te_ms / 80),
        coil=SmoothField.draw(rng, n_waves=6, wavelength_mm=(140.0, 300.0)),
        coil_strength=float(rng.uniform(0.03, 0.25)),
        surface=float(rng.choice([0.0, 1.0]) * rng.uniform(0.0, 0.5)),
    )


def _stage(rng: np.random.Generator, wavelength_mm: tuple[float, float]) -> SmoothField:
    """Displacements (mm) whose summed gradient stays below `Warp.MAX_GRADIENT` < 1, so that p + u(p) is invertible."""
    field = SmoothField.draw(rng, n_waves=8, wavelength_mm=wavelength_mm, channels=3)
    steepness = (field.amplitudes.norm(dim=1) * field.waves.norm(dim=1)).sum()
    scale = Warp.MAX_GRADIENT * float(rng.uniform(0.3, 1.0)) / steepness
    return SmoothField(field.waves, field.phases, field.amplitudes * scale)
