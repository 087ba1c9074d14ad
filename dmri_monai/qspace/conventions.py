"""Exact converters between this package's harmonics (e3nn) and those of DIPY and MRtrix.

DIPY has four real bases: `descoteaux07` and `tournier07`, each `legacy` or not.  MRtrix3 writes `tournier07`
with `legacy=False`, and in the world frame (scanner axes): turn coefficients there first (`rotate_irreps`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from dmri_monai.so3 import n_coefficients, sh_basis

__all__ = ["Basis", "conversion_matrix", "from_basis", "order_of", "to_basis"]

Basis = Literal["descoteaux07", "tournier07"]


@lru_cache(maxsize=32)
def conversion_matrix(l_max: int, basis: Basis, legacy: bool) -> Tensor:
    """(n_coef, n_coef) float64 T with c_e3nn = T @ c_basis, for the same function on the sphere."""
    points = _points(l_max)
    values = torch.from_numpy(_dipy_basis(points, l_max, basis, legacy))
    matrix: Tensor = torch.linalg.lstsq(sh_basis(points, l_max), values).solution
    # the bases are of the same harmonics up to a turn of the axes: what is not of the same order is rounding
    return torch.where(matrix.abs() < 1e-12, 0.0, matrix)


def from_basis(coefficients: Tensor, basis: Basis, *, legacy: bool, dim: int = 0) -> Tensor:
    """Coefficients in e3nn's convention from those of a DIPY `basis`, along axis `dim`."""
    return _apply(conversion_matrix(order_of(coefficients.shape[dim]), basis, legacy), coefficients, dim)


def to_basis(coefficients: Tensor, basis: Basis, *, legacy: bool, dim: int = 0) -> Tensor:
    """Coefficients of a DIPY `basis` from those in e3nn's convention, along axis `dim`."""
    matrix = torch.linalg.inv(conversion_matrix(order_of(coefficients.shape[dim]), basis, legacy))
    return _apply(matrix, coefficients, dim)


def order_of(n: int) -> int:
    """l_max of `n` even coefficients: 1, 6, 15, 28, 45, ...; ValueError for any other number."""
    l_max = 0
    while n_coefficients(l_max) < n:
        l_max += 2
    if n_coefficients(l_max) != n:
        raise ValueError(f"{n} is not a number of even harmonics (1, 6, 15, 28, 45, ...)")
    return l_max


def _apply(matrix: Tensor, coefficients: Tensor, dim: int) -> Tensor:
    moved = coefficients.movedim(dim, -1)
    return (moved @ matrix.T.to(moved)).movedim(-1, dim)


def _points(l_max: int) -> Tensor:
    n = 4 * n_coefficients(l_max)
    index = torch.arange(n, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * index / n, torch.pi * (1 + 5**0.5) * index
    radius = (1 - z * z).sqrt()
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=1)


def _dipy_basis(points: Tensor, l_max: int, basis: Basis, legacy: bool):  # type: ignore[no-untyped-def]
    from dipy.core.geometry import cart2sphere  # here: importing DIPY takes a second that few callers need
    from dipy.reconst.shm import real_sh_descoteaux, real_sh_tournier

    functions = {"descoteaux07": real_sh_descoteaux, "tournier07": real_sh_tournier}
    if basis not in functions:
        raise ValueError(f"basis must be one of {sorted(functions)}, got {basis!r}")
    _, theta, phi = cart2sphere(*points.numpy().T)
    return functions[basis](l_max, theta, phi, legacy=legacy)[0]
