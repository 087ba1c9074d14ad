"""Implicit anatomy of a small procedural head: tissue volume fractions at any point of world space.

Every structure is a level function of template millimetres (positive inside, close to a distance), so any
grid, resolution or field of view sees the same head. The template is about 0.7 of an adult's size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.phantom.fields import Seed, SmoothField, Warp, stage_rng

__all__ = ["TISSUES", "Anatomy", "tube_depth", "voxel_centres"]

TISSUES = ("wm", "gm", "csf", "bone", "scalp", "air")
CEREBRUM = ((0.0, 1.0, 4.0), (45.0, 54.5, 39.5))  # centre, semi-axes (mm)
CEREBELLUM = ((0.0, -31.0, -28.0), (30.0, 18.0, 13.0))
DEEP_GREY = (  # right side; mirrored to the left
    ((8.0, -6.0, 1.5), (6.0, 9.5, 6.0)),  # thalamus
    ((20.0, 5.0, 0.0), (4.5, 12.0, 7.5)),  # putamen and pallidum
    ((11.5, 15.0, 4.0), (3.8, 8.0, 6.0)),  # caudate head
)
VENTRICLE = torch.tensor([[6.0, 21, 5], [6, 8, 9.5], [7.5, -8, 10], [12, -21, 5], [17, -31, 3]])
VENTRICLE_RADIUS = torch.tensor([3.4, 3.6, 3.8, 4.6, 2.2])
STEM = torch.tensor([[0.0, -7, -4], [0, -10, -18], [0, -13, -30], [0, -15, -52]])
STEM_RADIUS = torch.tensor([8.0, 9.0, 8.5, 6.5])
SULCUS_WIDTH = 0.22  # in units of the folding field, whose standard deviation is 1
FIELD_PER_MM = 0.13  # turns cortical thickness into a change of the folding field
CHUNK = 400_000


@dataclass(frozen=True)
class Anatomy:
    """One subject's head: a warp of the template plus folding, thicknesses (mm) and ventricle scale."""

    warp: Warp
    folding: SmoothField
    foliation: SmoothField
    csf_mm: float
    sulcus_mm: float
    cortex_mm: float
    ventricle_scale: float

    @classmethod
    def draw(cls, seed: Seed) -> Anatomy:
        """Subject `seed`'s head."""
        rng = stage_rng(seed, "anatomy")
        return cls(
            warp=Warp.draw(rng),
            folding=SmoothField.draw(rng, n_waves=16, wavelength_mm=(22.0, 34.0)),
            foliation=SmoothField.draw(rng, n_waves=8, wavelength_mm=(14.0, 20.0)),
            csf_mm=float(rng.uniform(2.4, 3.2)),
            sulcus_mm=float(rng.uniform(7.0, 10.0)),
            cortex_mm=float(rng.uniform(3.8, 4.6)),
            ventricle_scale=float(rng.uniform(0.9, 1.45)),
        )

    def levels(self, points_world: Tensor) -> dict[str, Tensor]:
        """(P, 3) world mm -> name: (P,) signed depth in mm, positive inside the structure's outer surface."""
        p = self.warp.to_template(points_world)
        cranium = torch.minimum(_ellipsoid(p, (0, 0, 0), (48.5, 58.5, 46.5)), p[:, 2] - _skull_base(p))
        pial, white = self._surfaces(p, cranium)
        stem = tube_depth(p, STEM, STEM_RADIUS)
        mirrored = torch.cat([p[:, :1].abs(), p[:, 1:]], dim=1)
        lateral = tube_depth(mirrored, VENTRICLE, VENTRICLE_RADIUS * self.ventricle_scale)
        third = _ellipsoid(p, (0, -4, 0), (1.9 * self.ventricle_scale, 9.0, 6.0))
        deep = torch.stack([_ellipsoid(mirrored, *spec) for spec in DEEP_GREY]).amax(dim=0)
        return {
            "head": cranium + 6.5,
            "skull": cranium + 3.0,
            "cranium": cranium,
            "pial": torch.maximum(pial, torch.minimum(stem, cranium - 1.0)),
            "white": torch.maximum(white, torch.minimum(stem, cranium - 1.0)),
            "ventricle": torch.maximum(lateral, third),
            "deep": deep,
        }

    def _surfaces(self, p: Tensor, cranium: Tensor) -> tuple[Tensor, Tensor]:
        """(P,) depth below the pial and below the white surface: cerebrum united with cerebellum."""
        outer = torch.minimum(_ellipsoid(p, *CEREBRUM), p[:, 2] - _cerebrum_base(p))
        outer = torch.minimum(outer, cranium - self.csf_mm)
        inner = _ellipsoid(p * p.new_tensor([0.0, 1, 1]), (0, 1, -4), (1.0, 36.0, 19.5))
        smooth = torch.minimum(outer, torch.maximum(p[:, 0].abs() - 1.4, inner))
        depth = self.sulcus_mm * (1 - torch.sigmoid(inner - 3))
        hull = torch.minimum(_ellipsoid(p, *CEREBELLUM), cranium - 1.5)
        cerebrum = _fold(smooth, self.folding(p)[:, 0], depth, self.cortex_mm)
        cerebellum = _fold(hull, self.foliation(p)[:, 0], torch.full_like(hull, 4.0), 0.7 * self.cortex_mm)
        return torch.maximum(cerebrum[0], cerebellum[0]), torch.maximum(cerebrum[1], cerebellum[1])

    def fractions(self, points_world: Tensor, width_mm: float) -> Tensor:
        """(P, 3) world mm -> (6, P) volume fractions of `TISSUES`, sum 1; borders are `width_mm` wide."""
        inside = {k: (v / width_mm + 0.5).clamp(0, 1) for k, v in self.levels(points_world).items()}
        parenchyma = torch.minimum(inside["pial"], inside["cranium"]) * (1 - inside["ventricle"])
        white = torch.minimum(inside["white"] * (1 - inside["deep"]) * (1 - inside["ventricle"]), parenchyma)
        shells = [inside["cranium"], inside["skull"], inside["head"]]
        csf = inside["cranium"] - parenchyma
        outside = [shells[1] - shells[0], shells[2] - shells[1], 1 - shells[2]]
        return torch.stack([white, parenchyma - white, csf, *outside])

    def voxel_fractions(self, affine: Tensor, shape: tuple[int, int, int], supersample: int = 2) -> Tensor:
        """(6, X*Y*Z) volume fractions of the voxels of a grid, averaged over `supersample`^3 points each."""
        centres = voxel_centres(affine, shape)
        steps = (torch.arange(supersample, dtype=torch.float32) + 0.5) / supersample - 0.5
        offsets = torch.cartesian_prod(steps, steps, steps).to(centres) @ affine[:3, :3].T.to(centres)
        width = float(torch.linalg.det(affine[:3, :3].double()).abs()) ** (1 / 3) / supersample
        total = torch.zeros(len(TISSUES), len(centres), device=centres.device)
        for start in range(0, len(centres), CHUNK):
            part = centres[start : start + CHUNK]
            for offset in offsets:
                total[:, start : start + CHUNK] += self.fractions(part + offset, width)
        return total / len(offsets)


def voxel_centres(affine: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """(X*Y*Z, 3) world mm of the voxel centres of a grid, float32, on the affine's device."""
    axes = [torch.arange(n, dtype=torch.float64, device=affine.device) for n in shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    centres: Tensor = index @ affine[:3, :3].double().T + affine[:3, 3].double()
    return centres.float()


def _ellipsoid(p: Tensor, centre: tuple[float, float, float], axes: tuple[float, float, float]) -> Tensor:
    """First-order signed depth (1 - rho) / |grad rho|, rho = |(p - c) / a|; exact at the surface."""
    scaled = (p - p.new_tensor(centre)) / p.new_tensor(axes)
    rho = scaled.norm(dim=1).clamp(min=1e-3)
    slope = (scaled / p.new_tensor(axes)).norm(dim=1) / rho
    depth: Tensor = (1 - rho) / slope.clamp(min=1e-4)
    return depth


def tube_depth(p: Tensor, line: Tensor, radius: Tensor) -> Tensor:
    """Depth below the surface of a polyline (K, 3) thickened to linearly changing radii (K,)."""
    depth = p.new_full((len(p),), -np.inf)
    for a, b, ra, rb in zip(line[:-1].to(p), line[1:].to(p), radius[:-1], radius[1:], strict=True):
        t = ((p - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
        distance = (p - a - t.unsqueeze(1) * (b - a)).norm(dim=1)
        depth = torch.maximum(depth, ra + t * (rb - ra) - distance)
    return depth


def _fold(hull: Tensor, field: Tensor, depth: Tensor, cortex_mm: float) -> tuple[Tensor, Tensor]:
    """Pial and white depth under a smooth `hull`: sulci of `depth` follow the zero set of `field`.

    The sulcus of the white surface is wider than that of the pial one, so cortex lines the sulcal walls too.
    """
    pial = hull - depth * torch.exp(-((field / SULCUS_WIDTH) ** 2))
    wall = (field.abs() - FIELD_PER_MM * cortex_mm).clamp(min=0)
    return pial, hull - cortex_mm - depth * torch.exp(-((wall / SULCUS_WIDTH) ** 2))


def _skull_base(p: Tensor) -> Tensor:
    return -25.0 - 24.0 * torch.sigmoid((-p[:, 1] - 4.0) / 4.0)


def _cerebrum_base(p: Tensor) -> Tensor:
    return -21.5 + 8.0 * torch.sigmoid((-p[:, 1] - 10.0) / 4.0)
