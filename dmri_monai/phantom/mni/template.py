"""Tissue of the ICBM152 2009a symmetric template, and the maps that are derived from it, in MNI millimetres.

The T1 image and the grey- and white-matter probabilities (1 mm) stand in nilearn's wheel; cerebrospinal fluid,
deep grey matter, ventricles and distances are derived here once per process.
Reference: Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from dmri_monai.phantom.mni.potential import potential

__all__ = ["RESOLUTION_MM", "Template", "Volume", "load_template"]

RESOLUTION_MM = 1.0  # of the tissue maps; distances and fibre fans are kept at twice this
PAD = 20  # voxels around the template, for skull and scalp
HEMISPHERE_BOX = ((-45.0, 45.0), (-80.0, 48.0), (-32.0, 36.0))  # of ventricles and deep grey matter
DEEP_GREY = (  # centre (right side) and semi-axes, mm: grey matter inside them is deep
    ((11.0, -18.0, 7.0), (12.0, 16.0, 11.0)),  # thalamus
    ((25.0, 1.0, 0.0), (9.5, 21.0, 13.0)),  # putamen and pallidum
    ((12.0, 12.0, 9.0), (7.5, 16.0, 15.0)),  # head of the caudate nucleus
    ((6.0, -6.0, -8.0), (7.0, 12.0, 8.0)),  # hypothalamus and subthalamus
)
STEM_BOX = ((-17.0, 17.0), (-46.0, -10.0), (-100.0, -12.0))
VENTRICLE_DEPTH_MM = 14.0  # below the hull
FLAT = 1e-6  # per mm: a gradient of the potential below it is rounding, without a direction


@dataclass(frozen=True)
class Volume:
    """Maps (C, X, Y, Z) on an axis-aligned grid: voxel (0, 0, 0) at `origin` (3,) mm, `step` mm apart."""

    data: Tensor
    origin: Tensor
    step: float

    def at(self, points: Tensor) -> Tensor:
        """(P, 3) MNI mm -> (P, C), trilinear; the border value outside."""
        size = torch.tensor(self.data.shape[1:]).to(points)
        unit = 2 * (points - self.origin.to(points)) / (self.step * (size - 1)) - 1
        sampled = torch.nn.functional.grid_sample(
            self.data.to(points).unsqueeze(0),
            unit.flip(1).view(1, -1, 1, 1, 3),
            padding_mode="border",
            align_corners=True,
        )
        return sampled.view(len(self.data), -1).T

    def to(self, device: torch.device) -> Volume:
        """The same on another device."""
        return self if self.data.device == device else Volume(self.data.to(device), self.origin, self.step)


@dataclass(frozen=True)
class Template:
    """tissue: probabilities of (white, grey) matter at 1 mm.  shape: signed distances (mm, positive inside)
    of (brain, ventricle, deep grey, cortex), then depth 0 (deep) to 1 (at the cortex) of the white matter, at
    2 mm.  fan, radial: vector fields towards the cortex in white matter, and across the cortex, at 2 mm.
    """

    tissue: Volume
    shape: Volume
    fan: Volume
    radial: Volume

    def to(self, device: str | torch.device) -> Template:
        """The same on another device."""
        where = torch.device(device)
        return Template(*(v.to(where) for v in (self.tissue, self.shape, self.fan, self.radial)))


def _load_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(T1, grey matter, white matter) at 1 mm and their common affine, from nilearn's wheel."""
    try:
        from nilearn import datasets
    except ModuleNotFoundError as error:
        raise ValueError(
            "anatomy 'mni152' needs nilearn: pip install 'dmri-monai[phantom]', or use anatomy 'procedural'"
        ) from error
    loaders = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
    )
    images = [load(resolution=int(RESOLUTION_MM)) for load in loaders]
    t1, gm, wm = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    return t1, gm, wm, images[0].affine


@cache
def load_template() -> Template:
    """The template, derived once per process (a few seconds).  ValueError without nilearn."""
    t1, gm, wm, affine = _load_maps()
    origin = torch.from_numpy(affine[:3, 3]).float() - PAD * RESOLUTION_MM
    fine = torch.stack([_padded(v) for v in (t1, gm, wm, t1 > 0)])
    coarse = torch.nn.functional.avg_pool3d(fine.unsqueeze(0), 2)[0].numpy()
    step, origin2 = 2 * RESOLUTION_MM, origin + 0.5 * RESOLUTION_MM
    grid = [origin2[i].item() + step * np.arange(n) for i, n in enumerate(coarse.shape[1:])]
    regions = _regions(coarse, grid)
    white, grey = _mended(fine[2], fine[1], regions)
    derived = [Volume(torch.from_numpy(v), origin2, step) for v in _derive(coarse, regions, step)]
    return Template(Volume(torch.stack([white, grey]), origin, RESOLUTION_MM), *derived)


def _padded(values: np.ndarray) -> Tensor:
    """float32 with `PAD` zeros on every side, and one more where the size is odd."""
    widths = [(PAD, PAD + n % 2) for n in values.shape]
    return torch.from_numpy(np.pad(values, widths).astype(np.float32))


def _box(grid: list[np.ndarray], box: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Boolean grid: inside `box` (mm)."""
    x, y, z = ((g >= low) & (g <= high) for g, (low, high) in zip(grid, box, strict=True))
    return x[:, None, None] & y[:, None] & z


def _regions(coarse: np.ndarray, grid: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Boolean maps at 2 mm of brain, ventricle, deep grey matter, brain stem and cortex."""
    _, gm, wm, brain = coarse
    inside = ndimage.binary_fill_holes(brain > 0.5)
    depth = ndimage.distance_transform_edt(inside, 2 * RESOLUTION_MM)
    fluid = (1 - gm - wm > 0.5) & (depth > VENTRICLE_DEPTH_MM) & _box(grid, HEMISPHERE_BOX)
    ventricle = _largest(fluid)
    deep = (gm > 0.4) & np.any([_ellipsoid(grid, *spec) for spec in DEEP_GREY], axis=0)
    stem = _box(grid, STEM_BOX) & inside & _stem_axis(grid)
    return {"brain": inside, "ventricle": ventricle, "deep": deep & ~stem, "stem": stem, "depth": depth}


def _ellipsoid(grid: list[np.ndarray], centre: tuple[float, ...], axes: tuple[float, ...]) -> np.ndarray:
    """Boolean grid: inside an ellipsoid or its mirror image on the left."""
    x, y, z = np.meshgrid(*grid, indexing="ij", sparse=True)
    offsets = (np.abs(x) - centre[0], y - centre[1], z - centre[2])
    inside: np.ndarray = sum((d / a) ** 2 for d, a in zip(offsets, axes, strict=True)) < 1
    return inside


def _stem_axis(grid: list[np.ndarray]) -> np.ndarray:
    """Boolean grid: an oblique cylinder around the brain stem, from the midbrain down to the medulla."""
    x, y, z = np.meshgrid(*grid, indexing="ij", sparse=True)
    centre = -26.0 + 0.28 * (z + 20.0)  # y of the axis
    radius = np.where(z > -44.0, 15.0, 10.5)
    return x**2 + (y - centre) ** 2 < radius**2


def _largest(mask: np.ndarray) -> np.ndarray:
    """The connected component of `mask` with most voxels."""
    labels, n = ndimage.label(mask)
    if n == 0:
        return mask
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def _mended(white: Tensor, grey: Tensor, regions: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    """White and grey matter at 1 mm without two artefacts of the template's classification.

    The blurred edge between ventricle and white matter looks like grey matter, and so does the brain stem.
    """
    near = ndimage.distance_transform_edt(~regions["ventricle"], 2 * RESOLUTION_MM) < 7.0
    rim = near & ~ndimage.binary_dilation(regions["deep"], iterations=1)
    stem = regions["stem"]
    share = torch.from_numpy(0.75 * rim + 0.85 * (stem & ~rim)).float()
    share = torch.nn.functional.interpolate(share[None, None], scale_factor=2.0, mode="trilinear")[0, 0]
    moved = grey * share
    return white + moved, grey - moved


def _derive(
    coarse: np.ndarray, regions: dict[str, np.ndarray], step: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signed distances and depth (5, ...), the fan and the cortical normal (3, ...), at 2 mm."""
    _, gm, wm, _ = coarse
    cortex = (gm > 0.5) & ~regions["deep"] & ~regions["stem"] & (regions["depth"] < 40)
    names = [regions["brain"], regions["ventricle"], regions["deep"], cortex]
    distances = [_signed_distance(mask, step) for mask in names]
    deep = regions["ventricle"] | regions["deep"] | regions["stem"]
    phi = potential(low=deep, high=(cortex | ~regions["brain"]) & ~deep)
    smooth = [ndimage.gaussian_filter(phi, 0.8), ndimage.gaussian_filter(-wm, 1.2)]
    fan, radial = (np.stack(np.gradient(f, step)).astype(np.float32) for f in smooth)
    fan += 0.1 * regions["stem"] * np.array([0, 0.27, 0.96], np.float32)[:, None, None, None]
    return np.stack([*distances, phi]).astype(np.float32), _continued(fan), radial


def _continued(fan: np.ndarray) -> np.ndarray:
    """Vectors (3, ...), those of regions where the potential is flat replaced by the nearest with a direction.

    Deep grey matter and the cortex hold the potential at its ends, but a warped head can have white matter there.
    """
    flat = np.linalg.norm(fan, axis=0) < FLAT
    nearest = ndimage.distance_transform_edt(flat, return_distances=False, return_indices=True)
    continued: np.ndarray = fan[(slice(None), *nearest)]
    return continued


def _signed_distance(mask: np.ndarray, step: float) -> np.ndarray:
    """mm to the border of `mask`, positive inside."""
    inside = ndimage.distance_transform_edt(mask, step)
    outside = ndimage.distance_transform_edt(~mask, step)
    signed: np.ndarray = np.where(mask, inside - step / 2, step / 2 - outside)
    return signed
