"""Rotations of harmonic coefficients and other steerable fields, one for all voxels or one a voxel."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor

from dmri_monai.qspace.basis import n_coefficients, sh_basis

__all__ = ["irreps_matrix", "rotate_irreps", "rotate_voxelwise"]

CPU_CHUNK = 1 << 13
GPU_CHUNK = 1 << 18


def irreps_matrix(irreps: str, rotation: Tensor) -> Tensor:
    """(C, C) float64 matrix of `rotation` (3, 3), proper or not, on channels of `irreps`: f'(v) = f(R^T v).

    Wigner D matrices; the parity of each irrep tells what a mirror does to it ("1o": a vector, "2e": even
    harmonics).
    """
    return o3.Irreps(irreps).D_from_matrix(rotation.detach().cpu().double()).double()


def rotate_irreps(field: Tensor, irreps: str, rotation: Tensor) -> Tensor:
    """Turn `field` (B, C, X, Y, Z), with channels `irreps`, by one `rotation` (3, 3) for all voxels."""
    dim = o3.Irreps(irreps).dim
    if field.shape[1] != dim:
        raise ValueError(f"field has {field.shape[1]} channels, irreps {irreps} have {dim}")
    matrix = irreps_matrix(irreps, rotation).to(field)
    return torch.einsum("dc,bc...->bd...", matrix, field)


def rotate_voxelwise(coefficients: Tensor, rotations: Tensor, l_max: int) -> Tensor:
    """(n_coef, V) even harmonics up to l_max, each voxel's turned by its own rotation (V, 3, 3): f'(v) = f(R^T v).

    f' is sampled at fixed points p, f'(p) = f(R^T p), and fitted again: exact, since f' has no orders above l_max.
    """
    points = _fibonacci(2 * n_coefficients(l_max)).to(rotations)
    back = torch.linalg.pinv(sh_basis(points.double(), l_max)).to(coefficients)
    chunk = CPU_CHUNK if coefficients.device.type == "cpu" else GPU_CHUNK
    parts = []
    for start in range(0, coefficients.shape[1], chunk):
        where = slice(start, start + chunk)
        basis = sh_basis(points @ rotations[where], l_max).to(coefficients)  # rows are R^T p
        parts.append(back @ torch.einsum("vpc,cv->pv", basis, coefficients[:, where]))
    return torch.cat(parts, dim=1) if parts else coefficients.clone()


def _fibonacci(n: int) -> Tensor:
    """(n, 3) points spread over the half sphere z > 0, float64: even functions need no more."""
    index = torch.arange(n, dtype=torch.float64) + 0.5
    z, angle = index / n, torch.pi * (1 + 5**0.5) * index
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=1)
