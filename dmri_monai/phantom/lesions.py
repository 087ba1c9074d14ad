"""White-matter lesions: a few deformed balls in world space, preferably near the ventricles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmri_monai.phantom.anatomy import Anatomy
from dmri_monai.phantom.fields import Seed, SmoothField, stage_rng

__all__ = ["Lesions"]


@dataclass(frozen=True)
class Lesions:
    """Centres (n, 3) in world mm, radii (n,) in mm, and the field that makes their outlines irregular."""

    centres: Tensor
    radii: Tensor
    outline: SmoothField

    @classmethod
    def draw(cls, seed: Seed, anatomy: Anatomy, count: tuple[int, int] = (2, 6)) -> Lesions:
        """2-6 lesions of 3.5-6.5 mm radius, centred at least 3 mm deep in white matter; no grid involved."""
        rng = stage_rng(seed, "lesions")
        candidates = torch.tensor(
            rng.uniform((-40, -48, -8), (40, 48, 36), size=(4000, 3)), dtype=torch.float32
        )
        level = anatomy.levels(candidates)
        inside = (level["white"] > 3) & (level["ventricle"] < -3) & (level["deep"] < -3)
        candidates, near = candidates[inside], level["ventricle"][inside]
        weight = torch.exp(near.clamp(min=-30) / 12).double().numpy()  # periventricular preference
        n = min(int(rng.integers(count[0], count[1] + 1)), len(candidates))
        chosen = rng.choice(len(candidates), size=n, replace=False, p=weight / weight.sum())
        radii = torch.tensor(rng.uniform(3.5, 6.5, n), dtype=torch.float32)
        outline = SmoothField.draw(rng, n_waves=6, wavelength_mm=(8.0, 16.0))
        return cls(candidates[torch.from_numpy(chosen)], radii, outline)

    def at(self, points_world: Tensor, width_mm: float = 1.5) -> Tensor:
        """(P, 3) world mm -> (P,) lesion load in [0, 1], with a border `width_mm` wide."""
        if not len(self.centres):
            return points_world.new_zeros(len(points_world))
        distance = torch.cdist(points_world, self.centres.to(points_world))
        depth = (self.radii.to(points_world) - distance).amax(dim=1) + 0.8 * self.outline(points_world)[:, 0]
        return torch.sigmoid(4 * depth / width_mm)
