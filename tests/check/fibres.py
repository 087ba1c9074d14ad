"""A scan of thin curved fibre bundles on any grid, made with numpy alone."""

from __future__ import annotations

import numpy as np
import torch

from dmri_monai.check.measured import Measured
from dmri_monai.check.scan_check import ScanCheck, examine
from dmri_monai.gradients import GradientTable

EXTENT_MM = 44.0
PARALLEL, ACROSS, FREE = 1.7e-3, 0.3e-3, 0.9e-3  # mm2/s


def table(n_b0: int = 3, directions: int = 30, bval: float = 1000.0) -> GradientTable:
    """`n_b0` b0 volumes, then one shell on a golden spiral over the half sphere."""
    i = np.arange(directions) + 0.5
    z, angle = i / directions, np.pi * (1 + 5**0.5) * i
    ring = np.sqrt(1 - z**2)
    bvecs = np.concatenate(
        [np.zeros((n_b0, 3)), np.stack([ring * np.cos(angle), ring * np.sin(angle), z], 1)]
    )
    return GradientTable(torch.tensor([0.0] * n_b0 + [bval] * directions), torch.tensor(bvecs))


def positions(affine: torch.Tensor) -> np.ndarray:
    """(X, Y, Z, 3) world coordinates in mm about the centre of a grid of about 44 mm a side."""
    linear = affine[:3, :3].numpy()
    shape = [max(4, round(EXTENT_MM / s)) for s in np.linalg.norm(linear, axis=0)]
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return (index - (np.array(shape) - 1) / 2) @ linear.T


def rings(points: np.ndarray, seed: int = 0, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Tangent (..., 3) of the nearest of `count` rings of 3 mm thickness, and whether a point lies in one."""
    rng = np.random.default_rng(seed)
    best, tangent = np.full(points.shape[:-1], np.inf), np.zeros(points.shape)
    for _ in range(count):
        axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        local = (points - rng.uniform(-6, 6, 3)) @ axes
        radius = np.hypot(local[..., 0], local[..., 1])
        distance = np.hypot(radius - rng.uniform(11, 17), local[..., 2])
        around = (
            np.stack([-local[..., 1], local[..., 0], 0 * radius], -1) / np.maximum(radius, 1e-9)[..., None]
        )
        closer = distance < best
        best[closer], tangent[closer] = distance[closer], (around @ axes.T)[closer]
    return tangent, best < 3.0


def signal(
    tangent: np.ndarray, inside: np.ndarray, gradients: GradientTable, sigma: float = 20.0, seed: int = 0
) -> torch.Tensor:
    """(N, X, Y, Z) signal of one tensor a voxel, S0 = 1000, with Rician noise."""
    along = np.einsum("xyzi,ni->nxyz", tangent, gradients.bvecs.numpy()) ** 2
    free = FREE * np.ones_like(along)
    diffusivity = np.where(inside, ACROSS + (PARALLEL - ACROSS) * along, free)
    clean = 1000 * np.exp(-gradients.bvals.numpy()[:, None, None, None] * diffusivity)
    noise = np.random.default_rng(seed).normal(size=(2, *clean.shape)) * sigma
    return torch.tensor(np.hypot(clean + noise[0], noise[1]), dtype=torch.float32)


def ring_scan(affine: torch.Tensor, sigma: float = 20.0) -> tuple[torch.Tensor, GradientTable]:
    """Image (N, X, Y, Z) and table of rings on the grid `affine`."""
    gradients = table()
    return signal(*rings(positions(affine)), gradients, sigma), gradients


def checked(
    image: torch.Tensor,
    gradients: GradientTable,
    affine: torch.Tensor,
    slice_world: torch.Tensor | None = None,
) -> ScanCheck:
    """The check of a scan of arrays."""
    return examine(Measured(torch.as_tensor(image), gradients, affine.double(), slice_world))
