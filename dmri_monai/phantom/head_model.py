"""One person's head as volumes that a scan is sampled from: tissue, fibres and what lies around the brain."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from dmri_monai.io.writing import replacing
from dmri_monai.phantom.head_shell import CAVITIES_MM, regions
from dmri_monai.phantom.measured_fibres import FibreMap

__all__ = ["HeadModel", "build_model", "load_model", "save_model"]

DEPTH_STEP_MM = 0.5  # of the stored distances, which are whole numbers of it from -127 to 127
COARSE = 2  # tissue voxels per voxel of the fibres, along an axis
SMOOTHING_MM = 0.6  # of the evidence: thresholds of it move the borders of tissue


@dataclass(frozen=True)
class HeadModel:
    """tissue (X, Y, Z, 8) uint8, on the grid of `affine`: evidence of white matter, grey matter and fluid
    (0-255), depth below the brain's hull and into the ventricles (`stored_depth`), region (`head_shell.REGIONS`),
    two unused. fibres (X', Y', Z', 16) int8, on the grid of `fibre_affine`: 3 shares (0-127), 3 x 3 directions
    (-127 to 127, world frame), the normal of the cortex (3), deep grey matter (0 or 127).  Affines (4, 4)
    float64, mm, world frame. cavities (K, 4): centre and radius of air, mm.  centre (3,): of the brain, mm.
    size_l: of the brain's hull, litres. averaged: 1 where the tissue is a mean of many brains, whose borders are
    blurred.
    """

    tissue: Tensor
    affine: Tensor
    fibres: Tensor
    fibre_affine: Tensor
    cavities: Tensor
    centre: Tensor
    size_l: Tensor
    averaged: Tensor


def stored_depth(depth_mm: np.ndarray) -> np.ndarray:
    """mm as uint8: 128 is 0."""
    return (np.rint(depth_mm / DEPTH_STEP_MM).clip(-127, 127) + 128).astype(np.uint8)


def build_model(
    evidence: np.ndarray,
    hull: np.ndarray,
    affine: np.ndarray,
    *,
    template_mm: np.ndarray,
    fibres: FibreMap,
    deep: np.ndarray,
    ventricle: np.ndarray,
    averaged: bool,
) -> HeadModel:
    """Model of a head from volumes on one padded grid: evidence (3, X, Y, Z) 0 to 1, hull (X, Y, Z) bool.

    template_mm (3, x, y, z): places in the template, fibres, deep (bool) and ventricle (bool), all on the grid of
    `fibres`, which covers the same head at twice the spacing.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    smooth = [ndimage.gaussian_filter(e, 0 if averaged else SMOOTHING_MM / spacing) for e in evidence]
    volumes = np.zeros((*hull.shape, 8), np.uint8)
    volumes[..., :3] = np.rint(255 * np.stack(smooth, -1).clip(0, 1))
    volumes[..., 3] = stored_depth(_depth(hull, spacing))
    wide = 2 * spacing
    volumes[..., 4] = stored_depth(_finer(_depth(ventricle, wide), hull.shape))
    volumes[..., 5] = _finer(regions(template_mm), hull.shape)
    packed = np.zeros((*deep.shape, 16), np.int8)
    packed[..., :3] = np.rint(127 * fibres.shares)
    packed[..., 3:12] = np.rint(127 * fibres.directions).reshape(*deep.shape, 9)
    packed[..., 12:15] = np.rint(127 * _normals(evidence[0], affine, deep.shape))
    packed[..., 15] = 127 * deep
    places = np.argwhere(hull)
    centre = affine[:3, :3] @ places.mean(0) + affine[:3, 3]
    return HeadModel(
        tissue=torch.from_numpy(volumes),
        affine=torch.from_numpy(affine),
        fibres=torch.from_numpy(packed),
        fibre_affine=torch.from_numpy(fibres.affine),
        cavities=torch.from_numpy(_cavities(template_mm, fibres.affine)),
        centre=torch.from_numpy(centre),
        size_l=torch.tensor(len(places) * spacing.prod() / 1e6),
        averaged=torch.tensor(averaged),
    )


def _depth(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """mm below the surface of `mask`, negative outside."""
    inside = ndimage.distance_transform_edt(mask, spacing)
    outside = ndimage.distance_transform_edt(~mask, spacing)
    half = float(spacing.mean()) / 2
    depth: np.ndarray = np.where(mask, inside - half, half - outside)
    return depth


def _finer(coarse: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`coarse` repeated to the grid of twice the resolution."""
    for axis in range(3):
        coarse = coarse.repeat(COARSE, axis)
    result: np.ndarray = coarse[tuple(slice(n) for n in shape)]
    return result


def _normals(white: np.ndarray, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(X', Y', Z', 3) unit gradient of white matter, world frame: across the cortex."""
    smooth = ndimage.gaussian_filter(white, 2.0)[::COARSE, ::COARSE, ::COARSE]
    by_voxel = np.stack(np.gradient(smooth), -1)[tuple(slice(n) for n in shape)]
    gradient = by_voxel @ np.linalg.inv(affine[:3, :3])
    unit: np.ndarray = gradient / np.linalg.norm(gradient, axis=-1, keepdims=True).clip(1e-9)
    return unit


def _cavities(template_mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(K, 4): where the template's air lies in this head, the voxel whose place in the template is nearest."""
    rows = []
    for centre, radius in CAVITIES_MM:
        away = sum((template_mm[i] - centre[i]) ** 2 for i in range(3))
        voxel = np.unravel_index(int(np.argmin(away)), template_mm.shape[1:])
        rows.append([*(affine[:3, :3] @ np.array(voxel) + affine[:3, 3]), radius])
    return np.array(rows, np.float64)


def save_model(path: Path, model: HeadModel) -> None:
    """Write `model` as a compressed NumPy archive, whole or not at all."""
    with replacing(path) as (temporary,), temporary.open("wb") as file:
        np.savez_compressed(file, **{f.name: getattr(model, f.name).numpy() for f in fields(model)})


def load_model(path: Path) -> HeadModel:
    """Read what :func:`save_model` wrote.  ValueError naming the file and what it lacks."""
    with np.load(path, allow_pickle=False) as archive:
        missing = sorted({f.name for f in fields(HeadModel)} - set(archive.files))
        if missing:
            raise ValueError(f"no head model, {', '.join(missing)} missing: {path}")
        return HeadModel(**{f.name: torch.from_numpy(archive[f.name]) for f in fields(HeadModel)})
