"""Smooth warps that cannot fold: cubic B-spline displacements in millimetres, with their Jacobian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dmri_monai.qspace.reorientation import inverse

__all__ = ["Warp", "bspline_warp", "control_shape", "resample"]

# A cubic B-spline warp is injective while no control point moves by 1 / 2.4798 of their spacing along an axis
# (Choi and Lee 2000, doi:10.1006/gmod.2000.0531, for three dimensions).
SAFE_FRACTION = 0.4


@dataclass(frozen=True)
class Warp:
    """Where each output voxel takes its value: `source` (X, Y, Z, 3), in voxels of the input.

    jacobian (X, Y, Z, 3, 3): of the forward map, input to output, at the output voxel, in the voxel frame and
    mm: a fibre along v comes to lie along J v.
    """

    source: Tensor
    jacobian: Tensor


def control_shape(spatial_size: Sequence[int], spacing_mm: Tensor, control_mm: float) -> tuple[int, ...]:
    """Number of control points along each axis: grid extent over `control_mm`, and the spline's margin."""
    return tuple(
        math.floor((n - 1) * float(s) / control_mm) + 4 for n, s in zip(spatial_size, spacing_mm, strict=True)
    )


def bspline_warp(control: Tensor, spatial_size: Sequence[int], stretch: Tensor, control_mm: float) -> Warp:
    """Warp of a grid by control points `control` (3, n1, n2, n3): their displacements in units of
    `control_mm`.

    stretch (3, 3): symmetric factor P of the affine (mm), spacing its column lengths.  Raises ValueError for
    displacements that could fold the grid: beyond 0.4 of the control spacing.
    """
    if control.abs().max() > SAFE_FRACTION + 1e-9:
        raise ValueError(
            f"control points move by {float(control.abs().max()):.3g} of their spacing, at most 0.4"
        )
    spacing = stretch.norm(dim=0)
    tables = [
        _spline_tables(n, float(s) / control_mm, k)
        for n, s, k in zip(spatial_size, spacing, control.shape[1:], strict=True)
    ]
    shift = _separable(control, [value for value, _ in tables])
    slopes = [
        _separable(control, [slope if j == axis else value for j, (value, slope) in enumerate(tables)])
        for axis in range(3)
    ]
    along_axes = torch.eye(3, dtype=control.dtype) + torch.stack(slopes, dim=-1).movedim(0, 3)
    to_frame = stretch @ torch.diag(1.0 / spacing)  # from mm along the axes to the (orthonormal) voxel frame
    backward = to_frame @ along_axes @ torch.linalg.inv(to_frame)
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in spatial_size), indexing="ij"), dim=-1)
    source = grid.to(control) + shift.movedim(0, 3) * (control_mm / spacing)
    return Warp(source, inverse(backward.flatten(0, 2)).view_as(backward))


def _separable(control: Tensor, tables: Sequence[Tensor]) -> Tensor:
    return torch.einsum("cijk,xi,yj,zk->cxyz", control, *tables)


def _spline_tables(n: int, step: float, n_control: int) -> tuple[Tensor, Tensor]:
    """(n, n_control) cubic B-spline values, and their slopes, at n points `step` control spacings apart."""
    position = torch.arange(n, dtype=torch.float64) * step
    cell = position.floor()
    t = position - cell
    values = [(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]
    slopes = [-3 * (1 - t) ** 2, 9 * t**2 - 12 * t, -9 * t**2 + 6 * t + 3, 3 * t**2]
    table, slope_table = (
        torch.zeros(n, n_control, dtype=torch.float64),
        torch.zeros(n, n_control, dtype=torch.float64),
    )
    rows = torch.arange(n)
    for offset in range(4):
        table[rows, cell.long() + offset] = values[offset] / 6
        slope_table[rows, cell.long() + offset] = slopes[offset] / 6
    return table, slope_table


def resample(image: Tensor, source: Tensor, mode: str, padding_mode: str) -> Tensor:
    """(C, X, Y, Z) values of `image` at `source` (X, Y, Z, 3), in voxels of the image."""
    size = torch.tensor(image.shape[1:], dtype=source.dtype)
    normalised = source * (2.0 / (size - 1).clamp(min=1)) - (size > 1).to(source)
    grid = normalised.flip(-1).unsqueeze(0).to(image)  # grid_sample counts the last axis first
    return functional.grid_sample(
        image.unsqueeze(0), grid, mode=mode, padding_mode=padding_mode, align_corners=True
    ).squeeze(0)
