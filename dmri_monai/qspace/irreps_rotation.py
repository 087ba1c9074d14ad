"""Rotations of harmonic coefficients and other steerable fields, one rotation for all voxels or one per voxel."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.so3 import as_irreps, n_coefficients, representation_matrix, sh_basis

__all__ = ["rotate_irreps", "rotate_voxelwise"]

CPU_CHUNK = 1 << 13
GPU_CHUNK = 1 << 18


def rotate_irreps(field: Tensor, irreps: str, rotation: Tensor) -> Tensor:
    """Turn `field` (B, C, X, Y, Z), with channels `irreps`, by one `rotation` (3, 3) for all voxels."""
    dim = as_irreps(irreps).dim
    if field.shape[1] != dim:
        raise ValueError(f"field has {field.shape[1]} channels, irreps {irreps} have {dim}")
    matrix = representation_matrix(irreps, rotation.detach()).to(field)
    return torch.einsum("dc,bc...->bd...", matrix, field)


def rotate_voxelwise(coefficients: Tensor, rotations: Tensor, l_max: int) -> Tensor:
    """(n_coef, V) even harmonics up to l_max, each voxel's turned by its own rotation (V, 3, 3): f'(v) = f(R^T v).

    f' is sampled at fixed points p, f'(p) = f(R^T p), and fitted again: exact, since f' has no degrees above l_max.
    The samples are taken of f as a homogeneous polynomial of degree l_max, which is the same on the sphere and
    several times cheaper than harmonics.
    """
    points = spread_directions(n_coefficients(l_max) * 4 // 3)
    back = torch.linalg.pinv(sh_basis(points, l_max)).to(coefficients)
    polynomial = torch.linalg.inv(_monomials_in_harmonics(l_max)).to(coefficients) @ coefficients
    points = points.to(rotations)
    chunk = CPU_CHUNK if coefficients.device.type == "cpu" else GPU_CHUNK
    parts = []
    for start in range(0, coefficients.shape[1], chunk):
        where = slice(start, start + chunk)
        columns = rotations[where].permute(2, 1, 0)
        turned = torch.stack([points @ column for column in columns]).to(coefficients)  # (3, P, V): R^T p
        parts.append(back @ _evaluate(polynomial[:, where], turned, l_max))
    return torch.cat(parts, dim=1) if parts else coefficients.clone()


def _exponents(degree: int) -> list[tuple[int, int, int]]:
    return [(a, b, degree - a - b) for a in range(degree + 1) for b in range(degree + 1 - a)]


def _powers(points: Tensor, degree: int) -> list[list[Tensor]]:
    """Powers 0 to `degree` of the three components of `points` (3, ...)."""
    powers = []
    for component in points:
        row = [torch.ones_like(component)]
        for _ in range(degree):
            row.append(row[-1] * component)
        powers.append(row)
    return powers


def _evaluate(polynomial: Tensor, points: Tensor, degree: int) -> Tensor:
    """(P, V) values of homogeneous polynomials (n_coef, V) at `points` (3, P, V)."""
    x, y, z = _powers(points, degree)
    out = torch.zeros_like(points[0])
    for coefficient, (a, b, c) in zip(polynomial, _exponents(degree), strict=True):
        out += coefficient * (x[a] * y[b] * z[c])
    return out


@lru_cache(maxsize=8)
def _monomials_in_harmonics(degree: int) -> Tensor:
    """(n_coef, n_coef) float64: column m holds the harmonics of monomial m of even `degree`, on the sphere."""
    points = spread_directions(2 * n_coefficients(degree))
    x, y, z = _powers(points.T, degree)
    monomials = torch.stack([x[a] * y[b] * z[c] for a, b, c in _exponents(degree)], dim=1)
    solution: Tensor = torch.linalg.lstsq(sh_basis(points, degree), monomials).solution
    return solution
