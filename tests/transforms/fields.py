"""Synthetic scans for tests: a smooth field of tensors with a known direction everywhere, on any grid."""

from __future__ import annotations

import numpy as np
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from monai.data.meta_tensor import MetaTensor

from dmri_monai.gradients import grid_rotation

B = 1000.0
ORIENTATIONS = {
    "LAS": np.diag([-1.0, 1.0, 1.0]),
    "RAS": np.eye(3),
    "PLS": np.array([[0.0, -1, 0], [-1, 0, 0], [0, 0, 1]]),
    "oblique": np.linalg.qr(np.array([[-2.0, 0.5, 0.3], [0.4, 1.8, -0.6], [0.2, 0.5, 2.1]]))[0],
}
SPACINGS = {"iso": (2.0, 2.0, 2.0), "aniso": (2.0, 2.0, 2.5), "thick": (1.7, 1.7, 5.0)}


def directions(n: int, seed: int = 0) -> np.ndarray:
    """(n, 3) unit vectors spread over the half sphere (golden spiral, turned at random)."""
    i = np.arange(n) + 0.5
    z, angle = i / n, np.pi * (1 + 5**0.5) * i
    points = np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return points @ rotation


def affine_of(
    orientation: str, spacing: tuple[float, float, float], shape: tuple[int, int, int]
) -> np.ndarray:
    """(4, 4) affine whose world origin is in the middle of the grid."""
    affine = np.eye(4)
    affine[:3, :3] = ORIENTATIONS[orientation] * np.asarray(spacing)
    affine[:3, 3] = -affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def true_direction(points_mm: np.ndarray) -> np.ndarray:
    """(..., 3) unit fibre direction in the world frame: turns slowly and without symmetry over space."""
    x, y, z = np.moveaxis(np.asarray(points_mm), -1, 0)
    azimuth = 0.4 + 0.010 * x + 0.007 * y - 0.005 * z
    height = 0.35 + 0.006 * y - 0.008 * x + 0.004 * z
    return np.stack(
        [np.cos(azimuth) * np.cos(height), np.sin(azimuth) * np.cos(height), np.sin(height)], axis=-1
    )


def world_points(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(X, Y, Z, 3) positions of the voxels in mm."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    return grid @ affine[:3, :3].T + affine[:3, 3]


def stick_signal(direction: np.ndarray, bvals: np.ndarray, bvecs: np.ndarray) -> np.ndarray:
    """(N, ...) signal of cylindrical tensors (1.5 and 0.4 um²/ms) along `direction` (..., 3); S0 = 100."""
    cos2 = np.einsum("...i,ni->n...", direction, bvecs) ** 2
    b = bvals.reshape(-1, *[1] * (direction.ndim - 1))
    return 100.0 * np.exp(-b * (0.4e-3 + 1.1e-3 * cos2))


def field_item(
    orientation: str = "oblique",
    spacing: str = "aniso",
    shape: tuple[int, int, int] = (20, 22, 18),
    n: int = 30,
) -> dict:
    """Item of a noise-free scan of `true_direction`: image, bvals, bvecs (world)."""
    affine = affine_of(orientation, SPACINGS[spacing], shape)
    bvals = np.concatenate([[0.0], np.full(n, B)])
    bvecs = np.concatenate([np.zeros((1, 3)), directions(n)])
    signal = stick_signal(true_direction(world_points(affine, shape)), bvals, bvecs)
    image = MetaTensor(torch.tensor(signal, dtype=torch.float32), affine=torch.tensor(affine))
    return {
        "image": image,
        "bvals": torch.tensor(bvals, dtype=torch.float32),
        "bvecs": torch.tensor(bvecs, dtype=torch.float32),
    }


def dipy_v1(image: torch.Tensor, bvals: torch.Tensor, bvecs: torch.Tensor) -> np.ndarray:
    """(X, Y, Z, 3) principal direction by DIPY, in the frame of `bvecs`."""
    vectors = bvecs.double().numpy()
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    table = gradient_table(bvals.double().numpy(), bvecs=vectors, b0_threshold=50)
    data = np.moveaxis(torch.as_tensor(image).double().numpy(), 0, -1)
    return TensorModel(table, fit_method="WLS").fit(data).evecs[..., 0]


def axial_degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle between axes (sign does not count), degrees."""
    sine = np.linalg.norm(np.cross(a, b), axis=-1)
    return np.degrees(np.arctan2(sine, np.abs((a * b).sum(-1))))


def well_inside(item: dict, margin_mm: float = 4.0, reference: dict | None = None) -> np.ndarray:
    """(X, Y, Z) bool: voxels of the current grid that lie inside the reference grid by a margin."""
    image, reference = item["image"], reference or item
    affine, shape = reference["image"].affine.double().numpy(), reference["image"].shape[1:]
    points = world_points(image.affine.double().numpy(), image.shape[1:])
    index = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    margin = margin_mm / np.linalg.norm(affine[:3, :3], axis=0)
    return ((index >= margin) & (index <= np.asarray(shape) - 1 - margin)).all(-1)


def thinned(mask: np.ndarray, n: int) -> np.ndarray:
    """`mask` with at most n of its voxels, the same random ones every time: DIPY's fits are slow."""
    chosen = np.flatnonzero(mask)
    keep = np.random.default_rng(0).permutation(chosen)[:n]
    out = np.zeros(mask.size, dtype=bool)
    out[keep] = True
    return out.reshape(mask.shape)


def v1_error(item: dict, bvecs_voxel: torch.Tensor, reference: dict) -> np.ndarray:
    """Errors (degrees) of the DIPY fit in the voxel frame against the true world direction at each voxel."""
    image = item["image"]
    affine = image.affine.double()
    inside = thinned(well_inside(item, reference=reference), 500)
    v1 = dipy_v1(image.as_tensor()[:, inside], item["bvals"], bvecs_voxel)
    truth = true_direction(world_points(affine.numpy(), image.shape[1:]))[inside]
    return axial_degrees(v1 @ grid_rotation(affine).numpy().T, truth)
