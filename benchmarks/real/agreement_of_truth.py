"""What the true tissues of a head reach as `agreement` of `benchmarks.real.heads`, on the grids of its pairs of scans.

Each head's tissue maps are averaged over the voxels of both grids, which keep their place to each other; the largest
fraction is the class of a voxel, and the classes are compared as those of two scans of one head are.  A JSON line for
every head and pair, and the mean.

Run: python -m benchmarks.real.agreement_of_truth REAL_FOLDER CACHE [--anatomy DIR --peaks FILE --fa FILE]
"""

from __future__ import annotations

import argparse
import json
import logging
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from benchmarks.real.heads import PAIRS, Placed, agreement
from dmri_monai.phantom.head_bank import HeadSources, head_models
from dmri_monai.phantom.head_model import HeadModel

PARTS = 3  # points along each axis over which a voxel is averaged
TISSUES = 3  # the first maps of a head: WM, GM, CSF


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("real", type=Path, help="BIDS folder with the pairs of scans")
    parser.add_argument("cache", type=Path, help="folder of heads, made where it lacks them")
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--peaks", type=Path)
    parser.add_argument("--fa", type=Path)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    values = []
    sources = HeadSources(options.anatomy, options.peaks, options.fa)
    for head, model in head_models(options.cache, sources).items():
        for subject, *names in PAIRS:
            grids = [
                nibabel.load(options.real / subject / "dwi" / f"{subject}_{n}_dwi.nii.gz") for n in names
            ]
            values.append(agreement(*(sampled(model, grid, grids[0]) for grid in grids)))
            line = {"head": head, "pair": " ".join((subject, *names)), "agreement": values[-1]}
            print(json.dumps(line), flush=True)
    print(json.dumps({"pair": "mean", "agreement": round(float(np.mean(values)), 4)}), flush=True)


def middle(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    found: np.ndarray = affine[:3, :3] @ ((np.array(shape[:3]) - 1) / 2) + affine[:3, 3]
    return found


def sampled(model: HeadModel, grid: nibabel.Nifti1Image, centred: nibabel.Nifti1Image) -> Placed:
    """Class numbers 0 to 3 on `grid`, and its affine, of the head whose middle is that of the grid `centred`."""
    maps, own = np.asarray(model.tissue), np.asarray(model.affine, float)
    moved = np.eye(4)
    moved[:3, 3] = middle(own, maps.shape) - middle(centred.affine, centred.shape)
    to_head = np.linalg.inv(own) @ moved @ grid.affine
    shape = grid.shape[:3]
    index = np.indices(shape).reshape(3, -1)
    steps = (np.arange(PARTS) + 0.5) / PARTS - 0.5
    total = np.zeros((TISSUES, index.shape[1]))
    for step in product(steps, repeat=3):
        place = to_head[:3, :3] @ (index + np.array(step)[:, None]) + to_head[:3, 3:]
        for row, tissue in enumerate(total):
            tissue += ndimage.map_coordinates(maps[..., row].astype(np.float32), place, order=1)
    fractions = total / PARTS**3
    classes = np.concatenate([1 - fractions.sum(0, keepdims=True), fractions]).argmax(0)
    return classes.reshape(shape), grid.affine


if __name__ == "__main__":
    main()
