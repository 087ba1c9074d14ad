"""How far the true tissues of one head agree on two grids: what `same tissue` of `benchmarks.real.heads` could reach.

Each head's tissue maps are averaged over the voxels of two grids, the largest fraction is the class of a voxel, and
the classes are compared as two scans of one head are.  A JSON line for every head and pair of grids.

Run: python -m benchmarks.real.agreement_ceiling CACHE [--anatomy DIR --peaks FILE --fa FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
from itertools import product
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from benchmarks.real.heads import Placed, agreement
from dmri_monai.phantom.head_bank import HeadSources, head_models
from dmri_monai.phantom.head_model import HeadModel

# voxels in mm and degrees between slices, as of the real pairs
PAIRS = ((3.0, 36.0), (3.0, 15.0), (2.7, 0.0))
EXTENT_MM = (180, 220, 180)
OFFSET_MM = (1.0, 0.7, 1.3)  # of the second grid: scans of one head rarely share their voxels
PARTS = 3  # points along each axis over which a voxel is averaged
TISSUES = 3  # the first maps of a head: WM, GM, CSF


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, help="folder of heads, made where it lacks them")
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--peaks", type=Path)
    parser.add_argument("--fa", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    sources = HeadSources(options.anatomy, options.peaks, options.fa)
    for name, model in head_models(options.cache, sources).items():
        for spacing, angle in PAIRS:
            turned = Rotation.from_euler("x", angle, degrees=True).as_matrix()
            first = sampled(model, grid(model, spacing, np.eye(3), (0.0, 0.0, 0.0)), spacing)
            second = sampled(model, grid(model, spacing, turned, OFFSET_MM), spacing)
            line = {"head": name, "voxel_mm": spacing, "angle": angle, "agreement": agreement(first, second)}
            print(json.dumps(line), flush=True)


def grid(
    model: HeadModel, spacing: float, axes: np.ndarray, offset: tuple[float, float, float]
) -> np.ndarray:
    """Affine of cubic voxels along `axes` (columns) whose middle is that of the head's maps, moved by `offset` mm."""
    own = np.asarray(model.affine, float)
    middle = own[:3, :3] @ ((np.array(model.tissue.shape[:3]) - 1) / 2) + own[:3, 3] + offset
    affine = np.eye(4)
    affine[:3, :3] = spacing * axes
    affine[:3, 3] = middle - affine[:3, :3] @ ((shape_of(spacing) - 1) / 2)
    return affine


def shape_of(spacing: float) -> np.ndarray:
    return np.ceil(np.array(EXTENT_MM) / spacing).astype(int)


def sampled(model: HeadModel, affine: np.ndarray, spacing: float) -> Placed:
    """Class numbers 0 to 3 on the grid of `affine`, and that affine."""
    maps, to_head = np.asarray(model.tissue), np.linalg.inv(np.asarray(model.affine, float)) @ affine
    shape = shape_of(spacing)
    index = np.indices(shape).reshape(3, -1)
    steps = (np.arange(PARTS) + 0.5) / PARTS - 0.5
    total = np.zeros((TISSUES, index.shape[1]))
    for step in product(steps, repeat=3):
        place = to_head[:3, :3] @ (index + np.array(step)[:, None]) + to_head[:3, 3:]
        for row, tissue in enumerate(total):
            tissue += ndimage.map_coordinates(maps[..., row].astype(np.float32), place, order=1)
    fractions = total / PARTS**3
    classes = np.concatenate([1 - fractions.sum(0, keepdims=True), fractions]).argmax(0)
    return classes.reshape(shape), affine


if __name__ == "__main__":
    main()
