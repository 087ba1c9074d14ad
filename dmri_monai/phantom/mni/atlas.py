"""Centre lines of the major white-matter bundles in MNI millimetres (x right, y anterior, z superior).

The lines are our own, drawn through landmarks that the atlases below describe; they are splines through few
points, not tractography.  References: Catani and Thiebaut de Schotten 2008,
doi:10.1016/j.cortex.2008.05.004; Mori et al. 2008, doi:10.1016/j.neuroimage.2007.12.035
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

__all__ = ["Tract", "tracts"]

Point = tuple[float, float, float]
Line = tuple[Point, ...]
STEP_MM = 2.0


@dataclass(frozen=True)
class Tract:
    """Spline samples (K, 3) of one bundle with unit tangents (K, 3); Gaussian profile of SD `radius_mm`."""

    name: str
    points: Tensor
    tangents: Tensor
    radius_mm: float


def _sampled(name: str, radius_mm: float, guides: tuple[Line, ...], between: int) -> Tract:
    """Cubic splines through `guides` and `between` lines interpolated from each guide to the next."""
    lines = np.asarray(guides, dtype=float)
    if len(lines) > 1 and between:
        at = np.linspace(0, len(lines) - 1, (len(lines) - 1) * (between + 1) + 1)
        low = np.minimum(at.astype(int), len(lines) - 2)
        share = (at - low)[:, None, None]
        lines = (1 - share) * lines[low] + share * lines[low + 1]
    points, tangents = [], []
    for line in lines:
        arc = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))])
        spline = CubicSpline(arc, line)
        t = np.linspace(0, arc[-1], int(arc[-1] / STEP_MM) + 2)
        points.append(spline(t))
        tangents.append(spline(t, 1))
    directions = torch.tensor(np.concatenate(tangents), dtype=torch.float32)
    directions = torch.nn.functional.normalize(directions, dim=1)
    return Tract(name, torch.tensor(np.concatenate(points), dtype=torch.float32), directions, radius_mm)


def _mirrored(line: Line) -> Line:
    return tuple((-x, y, z) for x, y, z in line)


def _arch(*half: Point) -> Line:
    """A commissure: `half` from the midline outwards on the right, and its mirror image."""
    return (*_mirrored(tuple(reversed(half[1:]))), *half)


# name: (radius in mm, lines interpolated between guides, guides from the midline to the right)
COMMISSURES: dict[str, tuple[float, int, tuple[Line, ...]]] = {
    "callosum_genu": (3.6, 1, (
        ((0, 24, -1), (8, 30, -2), (13, 42, -6), (14, 55, -8)),
        ((0, 29, 3), (11, 34, 3), (18, 47, 4), (19, 60, 5)),
        ((0, 28, 10), (13, 33, 13), (21, 44, 18), (23, 56, 22)),
        ((0, 24, 16), (14, 28, 20), (23, 38, 29), (27, 48, 36)),
    )),
    "callosum_body": (3.4, 2, (
        ((0, 20, 19), (14, 23, 25), (22, 29, 40), (20, 36, 50)),
        ((0, 12, 22), (15, 13, 27), (24, 16, 43), (24, 18, 58)),
        ((0, 2, 24), (15, 1, 29), (26, -1, 45), (26, -2, 62)),
        ((0, -8, 25), (15, -10, 30), (26, -15, 46), (25, -18, 66)),
        ((0, -18, 25), (15, -21, 30), (26, -29, 47), (24, -34, 66)),
        ((0, -27, 22), (15, -32, 29), (25, -44, 45), (22, -53, 60)),
    )),
    "callosum_lateral": (3.6, 2, (
        ((0, 16, 20), (16, 18, 26), (32, 24, 28), (42, 28, 24)),
        ((0, 2, 24), (17, 2, 30), (34, 2, 35), (48, 4, 30)),
        ((0, -12, 25), (17, -14, 31), (35, -18, 38), (50, -20, 36)),
        ((0, -26, 22), (17, -31, 29), (35, -42, 36), (49, -48, 36)),
    )),
    "callosum_splenium": (3.6, 1, (
        ((0, -34, 19), (14, -42, 24), (24, -58, 32), (24, -70, 40)),
        ((0, -38, 14), (14, -45, 19), (23, -63, 20), (17, -82, 22)),
        ((0, -39, 9), (14, -46, 13), (24, -66, 8), (16, -88, 4)),
    )),
    "tapetum": (2.6, 1, (
        ((0, -36, 16), (18, -40, 22), (31, -45, 12), (37, -42, -4), (42, -30, -18)),
        ((0, -37, 14), (18, -43, 20), (31, -50, 10), (38, -52, -4), (46, -50, -14)),
    )),
    "anterior_commissure": (1.8, 0, (((0, 3, -5), (12, 4, -7), (24, 0, -10), (36, -8, -17)),)),
    "middle_cerebellar_peduncle": (4.2, 1, (
        ((0, -17, -30), (14, -24, -31), (22, -40, -33), (25, -58, -30)),
        ((0, -19, -38), (13, -27, -38), (20, -44, -39), (20, -64, -42)),
    )),
}  # fmt: skip

# name: (radius in mm, lines between, guides on the right); the left is the mirror image
PAIRED: dict[str, tuple[float, int, tuple[Line, ...]]] = {
    "corticospinal": (3.4, 1, (
        ((3, -39, -66), (4, -33, -52), (6, -24, -36),
         (14, -18, -15), (22, -13, 4), (24, -19, 26), (14, -27, 50), (7, -31, 68)),
        ((3, -39, -66), (4, -33, -52), (6, -24, -36),
         (14, -18, -15), (22, -13, 4), (26, -18, 26), (27, -24, 47), (30, -27, 63)),
        ((3, -39, -66), (4, -33, -52), (6, -24, -36),
         (14, -17, -15), (22, -11, 4), (27, -14, 25), (37, -15, 40), (44, -14, 52)),
        ((3, -39, -66), (4, -33, -52), (6, -24, -36),
         (14, -17, -15), (22, -10, 4), (27, -9, 23), (42, -6, 29), (53, -5, 30)),
    )),
    "thalamic_superior": (3.4, 2, (
        ((15, -20, 8), (22, -20, 18), (24, -26, 34), (16, -36, 56), (10, -40, 68)),
        ((15, -20, 8), (22, -20, 18), (27, -28, 34), (34, -36, 48), (36, -38, 58)),
        ((15, -18, 8), (22, -16, 18), (28, -22, 29), (43, -26, 38), (54, -24, 42)),
    )),
    "thalamic_anterior": (3.4, 2, (
        ((9, -10, 8), (16, 6, 6), (20, 24, 4), (20, 42, -4), (18, 56, -6)),
        ((9, -10, 9), (17, 8, 9), (22, 26, 14), (26, 42, 18), (28, 54, 18)),
        ((9, -10, 10), (18, 8, 13), (23, 22, 26), (27, 30, 40), (28, 34, 50)),
    )),
    "frontopontine": (3.2, 1, (
        ((5, -22, -36), (10, -15, -15), (16, 0, 2), (21, 14, 18), (20, 24, 40), (16, 28, 54)),
        ((5, -22, -36), (10, -15, -15), (17, 2, 4), (23, 18, 16), (30, 30, 30), (36, 34, 36)),
    )),
    "parietopontine": (3.0, 1, (
        ((7, -26, -36), (16, -22, -14), (25, -22, 6), (27, -32, 26), (24, -48, 46), (20, -56, 58)),
        ((7, -26, -36), (16, -22, -14), (26, -22, 6), (30, -34, 24), (38, -48, 38), (44, -54, 46)),
    )),
    "superior_longitudinal_1": (3.2, 0, (
        ((16, 42, 36), (18, 24, 46), (19, 0, 52), (19, -24, 51), (18, -48, 48), (17, -62, 42)),
    )),
    "superior_longitudinal_2": (3.8, 1, (
        ((30, 38, 24), (32, 20, 32), (32, -2, 36), (32, -26, 36), (34, -48, 36), (38, -64, 32)),
        ((36, 30, 28), (37, 14, 34), (36, -4, 38), (36, -26, 38), (39, -46, 40), (44, -60, 38)),
    )),
    "superior_longitudinal_3": (3.4, 0, (
        ((48, 20, 14), (43, 6, 23), (41, -12, 28), (42, -28, 30), (50, -42, 32)),
    )),
    "arcuate": (3.6, 1, (
        ((46, 16, 20), (38, 2, 27), (35, -20, 29), (37, -42, 24), (44, -50, 6), (50, -38, -8), (53, -22, -16)),
        ((42, 24, 16), (36, 4, 24), (33, -20, 26), (35, -40, 20), (42, -46, 4), (47, -34, -10), (50, -16, -20)),
    )),
    "frontal_aslant": (3.0, 0, (((10, 10, 58), (20, 12, 48), (32, 14, 34), (44, 16, 18)),)),
    "cingulum": (2.6, 0, (
        ((7, 26, -10), (9, 37, 4), (10, 31, 20), (10, 10, 34), (10, -14, 38), (11, -36, 34), (13, -48, 20),
         (18, -46, 4), (25, -34, -9), (26, -18, -20)),
    )),
    "inferior_fronto_occipital": (3.6, 1, (
        ((18, 56, 0), (25, 32, -4), (30, 14, -4), (33, 4, -9), (34, -8, -12), (38, -32, -2), (32, -60, 6),
         (18, -88, 12)),
        ((32, 48, 6), (26, 32, -6), (30, 14, -6), (32, 4, -10), (35, -8, -13), (39, -34, -5), (34, -64, -4),
         (26, -88, -6)),
    )),
    "inferior_longitudinal": (3.6, 1, (
        ((40, 4, -34), (44, -14, -24), (44, -36, -14), (39, -58, -6), (30, -76, 0), (18, -92, 2)),
        ((50, -4, -26), (50, -20, -18), (47, -40, -8), (41, -60, 2), (34, -76, 10), (26, -88, 16)),
    )),
    "uncinate": (3.2, 1, (
        ((10, 42, -14), (22, 28, -10), (28, 14, -9), (33, 4, -12), (37, 0, -24), (38, 4, -34)),
        ((22, 48, -8), (25, 30, -8), (30, 14, -7), (34, 4, -10), (38, -1, -22), (44, 4, -30)),
    )),
    "optic_radiation": (3.0, 1, (
        ((23, -26, -3), (32, -20, -8), (39, -36, -6), (36, -58, -2), (26, -76, 0), (12, -92, -4)),
        ((23, -27, -1), (32, -30, 2), (36, -44, 6), (32, -62, 8), (22, -78, 10), (12, -90, 10)),
    )),
    "middle_longitudinal": (3.2, 0, (
        ((48, 8, -20), (48, -10, -8), (45, -32, 4), (40, -52, 20), (34, -66, 36)),
    )),
    "vertical_occipital": (3.0, 0, (((38, -66, -14), (38, -72, 2), (35, -74, 18), (31, -74, 32)),)),
    "fornix": (1.8, 0, (
        ((4, 2, -8), (3, 3, 4), (2, -6, 15), (4, -20, 18), (13, -33, 13), (24, -36, 1), (29, -28, -9),
         (27, -16, -18)),
    )),
    "medial_lemniscus": (2.2, 0, (((3, -40, -62), (5, -34, -44), (7, -28, -26), (12, -23, -8), (16, -20, 4)),)),
    "superior_cerebellar_peduncle": (2.2, 0, (
        ((14, -58, -34), (8, -46, -28), (4, -34, -18), (5, -24, -8), (12, -16, 4)),
    )),
    "inferior_cerebellar_peduncle": (2.2, 0, (((7, -40, -60), (11, -43, -48), (15, -50, -38), (16, -62, -34)),)),
}  # fmt: skip


@cache
def tracts() -> tuple[Tract, ...]:
    """Every bundle: commissures as one, the others right and left."""
    found = [
        _sampled(name, radius, tuple(_arch(*half) for half in guides), between)
        for name, (radius, between, guides) in COMMISSURES.items()
    ]
    for name, (radius, between, guides) in PAIRED.items():
        left = tuple(_mirrored(line) for line in guides)
        found.append(_sampled(f"{name}_right", radius, guides, between))
        found.append(_sampled(f"{name}_left", radius, left, between))
    return tuple(found)
