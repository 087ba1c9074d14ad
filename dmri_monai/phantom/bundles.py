"""White-matter bundles as parametric centre lines, and the fibre populations they leave in a voxel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from dmri_monai.phantom.anatomy import STEM, STEM_RADIUS, Anatomy, tube_depth

__all__ = ["BUNDLES", "Bundle", "fibre_populations"]

MAX_POPULATIONS = 3
FAN_WEIGHT = 0.9  # of the fibres that fan out to the cortex, beside a bundle's core weight of 1
Line = tuple[tuple[float, float, float], ...]
BLEND_MM = 2.0  # neighbouring centre lines blend over this distance


@dataclass(frozen=True)
class Bundle:
    """Centre lines (template mm) of one bundle; its profile is Gaussian, `radius_mm` around the nearest."""

    name: str
    lines: tuple[Line, ...]
    radius_mm: float

    def sampled(self, step_mm: float = 1.5) -> tuple[Tensor, Tensor]:
        """Points (K, 3) and unit tangents (K, 3) along all lines, cubic splines through their points."""
        points, tangents = [], []
        for line in np.asarray(self.lines, dtype=float):
            arc = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
            spline = CubicSpline(arc, line)
            t = np.linspace(0, arc[-1], int(arc[-1] / step_mm) + 2)
            points.append(spline(t))
            tangents.append(spline(t, 1))
        directions = torch.tensor(np.concatenate(tangents), dtype=torch.float32)
        return torch.tensor(np.concatenate(points), dtype=torch.float32), torch.nn.functional.normalize(
            directions
        )

    def at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(P, 3) template mm -> density (P,) in [0, 1] and unit direction (P, 3)."""
        samples, tangents = (t.to(points) for t in self.sampled())
        squared = torch.cdist(points, samples, compute_mode="donot_use_mm_for_euclid_dist").square()
        nearest = squared.amin(dim=1)
        blend = torch.softmax(-squared / (2 * BLEND_MM**2), dim=1)
        density = torch.exp(-nearest / (2 * self.radius_mm**2))
        return density, torch.nn.functional.normalize(blend @ tangents, dim=1)


def _callosum() -> Bundle:
    def arch(y: float, end_y: float, end_z: float, top: float, end_x: float = 30.0) -> Line:
        right = [(4.0, y, top), (14.0, y + 0.25 * (end_y - y), top + 3.5), (end_x, end_y, end_z)]
        return (*((-x, yy, z) for x, yy, z in reversed(right)), (0.0, y, top - 0.5), *right)

    body = [arch(y, 1.3 * y, 31.0 - 0.012 * y * y, 13.5) for y in (-18.0, -12.0, -6.0, 0.0, 6.0, 12.0, 18.0)]
    forceps = [arch(24.0, 44.0, 4.0 + dz, 9.0, 16.0) for dz in (-6.0, 6.0)]
    forceps += [arch(-24.0, -43.0, 4.0 + dz, 9.0, 17.0) for dz in (-6.0, 6.0)]
    return Bundle("callosum", (*body, *forceps), 4.5)


def _paired(name: str, radius_mm: float, *lines: Line) -> list[Bundle]:
    """Right bundle from `lines`, and its mirror image on the left."""
    left = tuple(tuple((-x, y, z) for x, y, z in line) for line in lines)
    return [Bundle(f"{name}_right", lines, radius_mm), Bundle(f"{name}_left", left, radius_mm)]


@cache
def _atlas() -> tuple[Bundle, ...]:
    capsule = (
        (4.0, -14.0, -50.0),
        (5.0, -11.0, -26.0),
        (9.0, -8.0, -12.0),
        (14.5, -3.0, 2.0),
        (18.0, -4.0, 16.0),
    )
    tops = ((10.0, -10.0, 40.0), (20.0, -7.0, 37.0), (29.0, -4.0, 30.0), (36.0, 0.0, 20.0))
    arcuate = (
        (29.0, 28.0, 10.0),
        (30.0, 6.0, 16.0),
        (29.0, -16.0, 16.0),
        (32.0, -27.0, 4.0),
        (35.0, -10.0, -9.0),
    )
    superior = ((25.0, 36.0, 17.0), (25.0, 12.0, 23.0), (25.0, -12.0, 23.0), (26.0, -34.0, 17.0))
    cingulum = ((7.0, 36.0, 4.0), (7.5, 26.0, 16.0), (7.5, 0.0, 19.0), (7.5, -24.0, 16.0), (11.0, -33.0, 3.0))
    occipital = (
        (15.0, 45.0, 2.0),
        (23.0, 20.0, -7.0),
        (27.0, -8.0, -7.0),
        (23.0, -30.0, -3.0),
        (14.0, -46.0, 3.0),
    )
    uncinate = ((12.0, 38.0, -6.0), (20.0, 22.0, -9.0), (28.0, 12.0, -11.0), (33.0, 0.0, -13.0))
    radiation = ((11.0, -10.0, 1.0), (22.0, -16.0, 4.0), (23.0, -28.0, 5.0), (12.0, -45.0, 8.0))
    peduncle = (
        (-21.0, -32.0, -29.0),
        (-14.0, -20.0, -26.0),
        (0.0, -9.0, -25.0),
        (14.0, -20.0, -26.0),
        (21.0, -32.0, -29.0),
    )
    return (
        _callosum(),
        *_paired("corticospinal", 5.0, *((*capsule, top) for top in tops)),
        *_paired("arcuate", 5.5, arcuate),
        *_paired("superior_longitudinal", 5.5, superior),
        *_paired("cingulum", 3.0, cingulum),
        *_paired("inferior_fronto_occipital", 5.5, occipital),
        *_paired("uncinate", 4.5, uncinate),
        *_paired("optic_radiation", 4.5, radiation),
        Bundle("middle_cerebellar_peduncle", (peduncle,), 4.5),
    )


BUNDLES = _atlas()


def fibre_populations(anatomy: Anatomy, points_world: Tensor) -> tuple[Tensor, Tensor]:
    """(P, 3) world mm -> shares (P, 3), descending, sum 1, and unit world directions (P, 3, 3).

    Populations are the three densest of all bundles and the cortical fan; shares are of the fibres alone.
    """
    p = anatomy.warp.to_template(points_world)
    parts = [bundle.at(p) for bundle in BUNDLES] + [cortical_fan(p)]
    density = torch.stack([d for d, _ in parts], dim=1)
    top, index = density.topk(MAX_POPULATIONS, dim=1)
    shares = top / top.sum(dim=1, keepdim=True).clamp(min=1e-6)
    directions = torch.stack([v for _, v in parts], dim=1)
    directions = directions.gather(1, index.unsqueeze(-1).expand(-1, -1, 3))
    return shares, anatomy.warp.directions_to_world(points_world, directions)


def cortical_fan(p: Tensor) -> tuple[Tensor, Tensor]:
    """Density (P,) and direction (P, 3) at template mm `p`: away from the centre of the hemisphere."""
    in_cerebellum = ((p[:, 2] < -15) & (p[:, 1] < -10)).unsqueeze(1)
    hemisphere = torch.stack([12.0 * p[:, 0].sign(), p[:, 1] * 0.55, torch.full_like(p[:, 2], 1.0)], dim=1)
    away = torch.where(in_cerebellum, p - p.new_tensor([0.0, -24.0, -27.0]), p - hemisphere)
    stem = torch.sigmoid(tube_depth(p, STEM, STEM_RADIUS))
    return FAN_WEIGHT * (1 - stem) + 1e-3, torch.nn.functional.normalize(away + 1e-3, dim=1)
