"""White-matter lesions as in multiple sclerosis: periventricular, juxtacortical and in deep white matter.

Numbers and sizes are lognormal.  Their means are near those of 330 patients with early disease, of whom most
lesions were subcortical (13 per patient) and most volume was periventricular (2.3 ml; Pongratz et al. 2023,
doi:10.1016/j.nicl.2022.103311); the spreads are our own choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.phantom.fields import Seed, SmoothField, stage_rng
from dmri_monai.phantom.mni.mni_anatomy import MniAnatomy

__all__ = ["PLACES", "MsLesions"]

PLACES = {"periventricular": 0.3, "juxtacortical": 0.2, "deep": 0.5}  # share of the lesions
COUNT = (20.0, 0.6, 3, 70)  # lognormal: median, SD of the logarithm, limits
VOLUME_ML = {"periventricular": (0.2, 1.0), "juxtacortical": (0.08, 0.8), "deep": (0.12, 0.9)}
VOLUME_LIMITS_ML = (0.02, 9.0)
OUTLINE = 0.22  # of the radius
N_CANDIDATES = 30_000
CHUNK = 50_000


@dataclass(frozen=True)
class MsLesions:
    """Ellipsoids: centres (n, 3) world mm, unit long axes (n, 3), radii (n,) mm of a ball of that volume,
    elongations (n,), and their places; `outline` makes their borders irregular.
    """

    centres: Tensor
    axes: Tensor
    radii: Tensor
    elongation: Tensor
    places: tuple[str, ...]
    outline: SmoothField

    @classmethod
    def draw(cls, seed: Seed, anatomy: MniAnatomy) -> MsLesions:
        """Subject `seed`'s lesions; depends on its head, not on a grid."""
        rng = stage_rng(seed, "mni-lesions")
        points, axes, place = _candidates(rng, anatomy)
        median, spread, low, high = COUNT
        n = int(np.clip(rng.lognormal(np.log(median), spread), low, high))
        wanted = rng.choice(list(PLACES), size=n, p=list(PLACES.values()))
        chosen = _pick(rng, wanted, place)
        volumes = [rng.lognormal(np.log(VOLUME_ML[place[i]][0]), VOLUME_ML[place[i]][1]) for i in chosen]
        ml = np.clip(volumes, *VOLUME_LIMITS_ML)
        return cls(
            centres=points[chosen],
            axes=axes[chosen],
            radii=torch.tensor(np.cbrt(1000 * ml * 0.75 / np.pi), dtype=torch.float32),
            elongation=torch.tensor(rng.uniform(1.2, 2.2, len(chosen)), dtype=torch.float32),
            places=tuple(str(place[i]) for i in chosen),
            outline=SmoothField.draw(rng, n_waves=10, wavelength_mm=(6.0, 18.0)),
        )

    def at(self, points_world: Tensor, width_mm: float = 1.5) -> Tensor:
        """(P, 3) world mm -> (P,) lesion load in [0, 1], with a border `width_mm` wide."""
        return torch.cat([self._at(p, width_mm) for p in points_world.split(CHUNK)])

    def _at(self, p: Tensor, width_mm: float) -> Tensor:
        centres, axes, radii, long = (t.to(p) for t in (self.centres, self.axes, self.radii, self.elongation))
        squared = torch.cdist(p, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
        along = (p @ axes.T - (centres * axes).sum(dim=1)).square()
        scaled = (along / long.square() + (squared - along).clamp(min=0)) * long.pow(2 / 3)
        irregular = 1 + OUTLINE * self.outline(p).clamp(-1.5, 1.5)
        depth = (radii * irregular - scaled.sqrt()).amax(dim=1)
        return torch.sigmoid(4 * depth / width_mm)

    def parameters(self) -> dict[str, object]:
        """For the sidecar: how many of which place, and their volumes in ml as drawn."""
        ml = (4 / 3 * np.pi * self.radii.double() ** 3 / 1000).tolist()
        counts = {name: self.places.count(name) for name in PLACES}
        return {"count": counts, "volume_ml": [round(v, 3) for v in ml]}


def _candidates(rng: np.random.Generator, anatomy: MniAnatomy) -> tuple[Tensor, Tensor, np.ndarray]:
    """World points in white matter, the fan's unit direction there, and the place's name."""
    where = anatomy.template.tissue.data.device
    draws = rng.uniform((-75, -90, -45), (75, 90, 75), size=(N_CANDIDATES, 3))
    world = torch.tensor(draws, dtype=torch.float32, device=where)
    p = anatomy.warp.to_template(world)
    shape = anatomy.template.shape.at(p)
    ventricle = -shape[:, 1] - anatomy.ventricle_mm
    cortex = -shape[:, 3]
    white = (anatomy.fractions(world, 1.0)[0] > 0.9) & (shape[:, 2] < -3) & (p[:, 2] > -16)
    places = {
        "periventricular": white & (ventricle > 1.5) & (ventricle < 7) & (cortex > 3),
        "juxtacortical": white & (cortex < 3.5) & (ventricle > 12),
        "deep": white & (cortex >= 5) & (ventricle >= 8),
    }
    names = np.full(len(world), "", dtype=object)
    for name, mask in places.items():
        names[mask.cpu().numpy()] = name
    keep = names != ""
    kept = torch.from_numpy(np.flatnonzero(keep)).to(where)
    fan = anatomy.template.fan.at(p[kept]).unsqueeze(1)
    axes = anatomy.warp.directions_to_world(world[kept], fan)[:, 0]
    return world[kept].cpu(), axes.cpu(), names[keep]


def _pick(rng: np.random.Generator, wanted: np.ndarray, place: np.ndarray) -> list[int]:
    """One candidate for each wanted place; a place without candidates gives none."""
    chosen: list[int] = []
    for name in wanted:
        pool = np.setdiff1d(np.flatnonzero(place == name), chosen)
        if len(pool):
            chosen.append(int(rng.choice(pool)))
    return chosen
