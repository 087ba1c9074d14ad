"""Small scans written to files by hand (nibabel and text, not the code under test)."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import torch

SHAPE = (5, 4, 3)


def unit_vectors(n: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def bvals_and_bvecs(n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    bvals = np.where(np.arange(n) % 4 == 0, 0.0, 1000.0)
    bvecs = unit_vectors(n)
    bvecs[bvals == 0] = 0
    return bvals, bvecs


def voxels(n: int = 8, dtype: type = np.int16, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, size=(*SHAPE, n)).astype(dtype)


def save_image(path: Path, data: np.ndarray, affine: np.ndarray | torch.Tensor | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-2.0, 2, 2, 1]) if affine is None else np.asarray(affine)
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


def rows(values: np.ndarray) -> str:
    return "\n".join(" ".join(f"{v:.12g}" for v in row) for row in np.atleast_2d(values)) + "\n"


def write_scan(path: Path, n: int = 8, affine: np.ndarray | torch.Tensor | None = None) -> Path:
    """A scan of `n` volumes with FSL sidecars of the same stem."""
    bvals, bvecs = bvals_and_bvecs(n)
    save_image(path, voxels(n), affine)
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    path.with_name(f"{stem}.bval").write_text(rows(bvals))
    path.with_name(f"{stem}.bvec").write_text(rows(bvecs.T))
    return path
