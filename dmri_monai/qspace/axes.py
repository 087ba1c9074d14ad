"""Axes (directions without a sign) as vectors, as l = 2 harmonics and as polar angles.

Channels stand second, (B, C, ...), with any spatial shape behind them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from dmri_monai.qspace.tensor import tensor_metrics
from dmri_monai.so3 import clebsch_gordan, sh_basis

__all__ = ["axis_to_harmonics", "axis_to_polar", "harmonics_to_axis", "polar_to_axis"]


def axis_to_harmonics(axis: Tensor) -> Tensor:
    """(B, 5, ...) orthonormal l = 2 harmonics at `axis` (B, 3, ...), e3nn's order; 0 for zero vectors and NaN.

    The sign of an axis does not matter; the norm is sqrt(5 / 4 pi) for every axis.
    """
    vectors = axis.nan_to_num(0.0).movedim(1, -1)
    return sh_basis(vectors, 2)[..., 1:].movedim(-1, 1)


def harmonics_to_axis(coefficients: Tensor) -> Tensor:
    """(B, 3, ...) unit axis where the l = 2 function `coefficients` (B, 5, ...) is largest; 0 where it is 0.

    It is the first eigenvector of the quadratic form x^T M x = sum_m c_m Y_2m(x); its sign is arbitrary.
    """
    if coefficients.ndim < 2 or coefficients.shape[1] != 5:
        raise ValueError(f"l = 2 coefficients have shape {tuple(coefficients.shape)}, expected (B, 5, ...)")
    flat = coefficients.flatten(2) if coefficients.ndim > 2 else coefficients.unsqueeze(-1)
    form = torch.einsum("tm,bmv->btv", quadratic_form().to(flat), flat)
    v1 = tensor_metrics(form[..., None, None]).v1
    return v1.reshape(len(coefficients), 3, *coefficients.shape[2:])


@lru_cache(maxsize=1)
def quadratic_form() -> Tensor:
    """(6, 5) float64: xx, yy, zz, xy, xz, yz of the quadratic form of each l = 2 harmonic."""
    clebsch = clebsch_gordan(1, 1, 2)  # vectors of e3nn are in the order x, y, z
    scale = math.sqrt(75 / (8 * math.pi))
    pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    return scale * torch.stack([clebsch[i, j] for i, j in pairs])


def axis_to_polar(axis: Tensor) -> Tensor:
    """(B, 2, ...) published angles (theta / pi, phi / pi) of `axis` (B, 3, ...) on the hemisphere phi >= 0.

    theta in [0, pi] from +z, phi = atan2(y, x) in [0, pi): of the two ends of an axis the one with y > 0 (then
    x > 0, then z > 0).  NaN for zero vectors and NaN.  The map is not continuous: neighbouring axes across
    y = 0 get far apart angles.  Reference: Weninger et al. 2022 (BVM), fibre orientation.
    """
    x, y, z = axis.unbind(1)
    flip = (y < 0) | ((y == 0) & ((x < 0) | ((x == 0) & (z < 0))))
    x, y, z = (torch.where(flip, -c, c) + 0.0 for c in (x, y, z))
    theta, phi = torch.atan2((x * x + y * y).sqrt(), z), torch.atan2(y, x)
    angles = torch.stack([theta, phi], dim=1) / math.pi
    length = axis.norm(dim=1, keepdim=True)
    return torch.where(length > 0, angles, torch.nan)


def polar_to_axis(angles: Tensor) -> Tensor:
    """(B, 3, ...) unit vectors of (theta / pi, phi / pi) (B, 2, ...)."""
    theta, phi = (math.pi * angles).unbind(1)
    return torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], dim=1)
