"""A subject's head from the MNI152 template: tissue volume fractions at any point of world space."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.phantom.anatomy import TISSUES, voxel_centres
from dmri_monai.phantom.fields import Seed, SmoothField, stage_rng
from dmri_monai.phantom.mni.diffeomorphism import Diffeomorphism
from dmri_monai.phantom.mni.template import Template, load_template

__all__ = ["MniAnatomy"]

SHARPNESS = 14.0  # turns the blurred average brain's probabilities into tissue with borders of about 1 mm
SAMPLE_MM = 1.25  # distance of the samples that are averaged to a voxel
MAX_SUPERSAMPLE = 4
SKULL_MM, SCALP_MM = 6.0, 6.0
CHUNK = 200_000


@dataclass(frozen=True)
class MniAnatomy:
    """One subject's head: template, warp, and what makes the tissue borders its own (mm, or probability).

    gyri: (3 channels) added to the probabilities of white matter, grey matter and fluid.
    """

    template: Template
    warp: Diffeomorphism
    gyri: SmoothField
    gyri_strength: float
    cortex_bias: float
    fluid_bias: float
    ventricle_mm: float
    fluid_mm: float

    @classmethod
    def draw(cls, seed: Seed, device: str | torch.device = "cpu") -> MniAnatomy:
        """Subject `seed`'s head.  ValueError where nilearn is missing."""
        rng = stage_rng(seed, "mni-anatomy")
        return cls(
            template=load_template().to(device),
            warp=Diffeomorphism.draw(rng),
            gyri=SmoothField.draw(rng, n_waves=12, wavelength_mm=(14.0, 40.0), channels=3),
            gyri_strength=float(rng.uniform(0.04, 0.09)),
            cortex_bias=float(rng.uniform(-0.1, 0.0)),
            fluid_bias=float(rng.uniform(0.02, 0.14)),
            ventricle_mm=float(rng.uniform(-1.0, 3.0)),
            fluid_mm=float(rng.uniform(0.3, 1.5)),
        )

    def parameters(self) -> dict[str, object]:
        """For the sidecar."""
        names = ("gyri_strength", "cortex_bias", "fluid_bias", "ventricle_mm", "fluid_mm")
        size = torch.linalg.svdvals(self.warp.linear.double()).reciprocal().tolist()
        return {"size": size} | {name: getattr(self, name) for name in names}

    def fractions(self, points_world: Tensor, width_mm: float) -> Tensor:
        """(P, 3) world mm -> (6, P) volume fractions of `TISSUES`, sum 1; outer borders are `width_mm` wide."""
        p = self.warp.to_template(points_world)
        brain, ventricle = self.template.shape.at(p)[:, :2].unbind(1)
        cavity, skull, head = (
            ((brain + margin) / width_mm + 0.5).clamp(0, 1)
            for margin in (self.fluid_mm, self.fluid_mm + SKULL_MM, self.fluid_mm + SKULL_MM + SCALP_MM)
        )
        result = torch.zeros(len(TISSUES), len(p), device=p.device)
        result[3:] = torch.stack([skull - cavity, head - skull, 1 - head])
        inside = torch.nonzero(cavity > 0).flatten()
        result[:3, inside] = self._tissue(p[inside], ventricle[inside]).T * cavity[inside]
        return result

    def _tissue(self, p: Tensor, ventricle: Tensor) -> Tensor:
        """(P, 3) template mm -> (P, 3) fractions of white matter, grey matter and fluid, sum 1."""
        known = self.template.tissue.at(p)
        fluid = (1 - known.sum(1, keepdim=True)).clamp(min=0)
        evidence = torch.cat([known, fluid], dim=1) + self.gyri_strength * self.gyri(p).clamp(-2, 2)
        evidence = evidence + p.new_tensor([0.0, self.cortex_bias, self.fluid_bias])
        tissue = torch.softmax(SHARPNESS * evidence, dim=1)
        water = torch.sigmoid((ventricle + self.ventricle_mm) / 0.4).unsqueeze(1)
        return tissue * (1 - water) + p.new_tensor([0.0, 0.0, 1.0]) * water

    def voxel_fractions(self, affine: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """(6, X*Y*Z) volume fractions of the voxels of a grid, averaged over a sample every 1.25 mm or so."""
        centres = voxel_centres(affine, shape)
        linear = affine[:3, :3].to(centres)
        spacing = linear.norm(dim=0).tolist()
        counts = [int(np.clip(round(s / SAMPLE_MM), 1, MAX_SUPERSAMPLE)) for s in spacing]
        steps = [(torch.arange(n, dtype=torch.float32) + 0.5) / n - 0.5 for n in counts]
        offsets = torch.cartesian_prod(*steps).to(centres) @ linear.T
        width = max(s / n for s, n in zip(spacing, counts, strict=True))
        far = self._outside(centres, reach_mm=0.5 * float(np.linalg.norm(spacing)))
        total = centres.new_zeros(len(TISSUES), len(centres))
        total[TISSUES.index("air")] = 1.0
        for index in torch.nonzero(~far).flatten().split(CHUNK):
            points = centres[index]
            total[:, index] = sum(self.fractions(points + o, width) for o in offsets) / len(offsets)
        return total

    def _outside(self, points_world: Tensor, reach_mm: float) -> Tensor:
        """(P,) bool: points from which the scalp is farther than `reach_mm`, as far as the warp stretches."""
        p = self.warp.to_template(points_world)
        margin = self.fluid_mm + SKULL_MM + SCALP_MM + 2.0 * reach_mm + 2.0
        return self.template.shape.at(p)[:, 0] < -margin
