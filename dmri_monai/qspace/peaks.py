"""Peaks of functions on the sphere given by even harmonics, such as fibre orientation densities."""

from __future__ import annotations

from functools import lru_cache
from math import cos, pi, radians
from typing import NamedTuple

import torch
from torch import Tensor

from dmri_monai.qspace.conventions import order_of
from dmri_monai.so3 import even_orders, sh_basis, wigner_d

__all__ = ["Peaks", "harmonic_peaks"]

GRID = 600  # points on the half sphere, some 6 degrees apart: no peak of order 8 hides between them
NEIGHBOURHOOD = 1.7  # of their distance
STEPS = 4  # of Newton's method
MAX_STEP = radians(4.0)
SLACK = 0.7  # of the height that counts: what a maximum has at the nearest point of the grid at the least
CHUNK = 2048  # voxels at a time: their values on the grid stay in the cache
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
SQUARE = torch.tensor([[0, 3, 4], [3, 1, 5], [4, 5, 2]])  # place in PAIRS of each entry of a symmetric matrix


class Peaks(NamedTuple):
    """Per voxel, largest first: unit `directions` (V, n, 3) and `amplitudes` (V, n), both 0 where there is none."""

    directions: Tensor
    amplitudes: Tensor

    @property
    def number(self) -> Tensor:
        """(V,) how many there are."""
        return (self.amplitudes > 0).sum(1)


def harmonic_peaks(
    coefficients: Tensor,
    *,
    count: int = 3,
    relative: float = 0.0,
    absolute: float = 0.0,
    separation_degrees: float = 15.0,
) -> Peaks:
    """The `count` largest maxima of functions (n_coef, V) in orthonormal even harmonics, as axes.

    A maximum of the grid is moved to the function's own by Newton's method on the sphere.  Dropped are maxima of at
    most `absolute`, below `relative` times the voxel's largest, and within `separation_degrees` of a larger one.
    NaN coefficients have no peaks.  The frame is that of the coefficients.
    Raises ValueError where n_coef is not 1, 6, 15, 28, 45, ....
    """
    order_of(len(coefficients))
    least = (SLACK * relative, SLACK * absolute)
    parts = [_peaks(part, count, separation_degrees, least) for part in coefficients.split(CHUNK, dim=1)]
    directions, amplitudes = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    kept = (amplitudes > absolute) & (amplitudes > 0) & (amplitudes >= relative * amplitudes[:, :1])
    return Peaks(directions * kept.unsqueeze(2), amplitudes * kept)


@lru_cache(maxsize=2)
def _grid(l_max: int) -> tuple[Tensor, Tensor, Tensor]:
    """Spiral of axes (P, 3), their harmonics (P, n_coef) and the neighbours (P, k) of each, float64."""
    index = torch.arange(GRID, dtype=torch.float64) + 0.5
    z, angle = index / GRID, pi * (1 + 5**0.5) * index
    radius = (1 - z * z).sqrt()
    points = torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=1)
    closeness = (points @ points.T).abs().fill_diagonal_(0.0)
    near = closeness > cos(NEIGHBOURHOOD * (2 * pi / GRID) ** 0.5)
    k = int(near.sum(1).max())
    # those with fewer neighbours name the nearest again
    chosen = closeness.topk(k, dim=1).indices
    chosen = torch.where(near.gather(1, chosen), chosen, chosen[:, :1])
    return points, sh_basis(points, l_max), chosen


@lru_cache(maxsize=2)
def _moving(l_max: int) -> Tensor:
    """(10, n_coef, n_coef) float64: from a function's coefficients to its own, to those of its derivatives by a turn of
    the direction about x, y, z, and to those of the second ones about xx, yy, zz, xy, xz, yz.

    Y(exp(t A) u) = exp(t J) Y(u), with A and J the generators of a turn of vectors and of harmonics.
    """
    turns = torch.zeros(3, 3, 3, dtype=torch.float64)
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        turns[i, k, j], turns[i, j, k] = 1.0, -1.0
    one = torch.eye(3, dtype=torch.float64)
    first = []
    for turn in turns:
        blocks = [
            torch.func.jvp(lambda m, degree=degree: wigner_d(degree, m), (one,), (turn,))[1]
            for degree in even_orders(l_max)
        ]
        first.append(torch.block_diag(*blocks))
    second = [(first[i] @ first[j] + first[j] @ first[i]) / 2 for i, j in PAIRS]
    return torch.stack([torch.eye(len(first[0]), dtype=torch.float64), *first, *second]).transpose(1, 2)


def _peaks(
    coefficients: Tensor, count: int, separation_degrees: float, least: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """As :func:`harmonic_peaks`; least: height of a point of the grid, relative and absolute, to begin from."""
    values = coefficients.detach().nan_to_num(0.0).double().T  # (V, n_coef)
    points, basis, neighbours = (tensor.to(values.device) for tensor in _grid(order_of(values.shape[1])))
    sampled = basis @ values.T  # (P, V): neighbours are rows, which lie together
    greatest = torch.full_like(sampled, -torch.inf)
    for row in neighbours.T:
        torch.maximum(greatest, sampled[row], out=greatest)
    lowest = (least[0] * sampled.amax(0)).clamp(min=least[1])
    candidates = torch.where((sampled >= greatest) & (sampled > lowest), sampled, -torch.inf)
    height, index = candidates.T.topk(2 * count + 2, dim=1)
    found = height.isfinite()
    directions = torch.zeros(*index.shape, 3, dtype=values.dtype, device=values.device)
    amplitudes = torch.zeros_like(height)
    voxel = torch.nonzero(found)[:, 0]
    directions[found], amplitudes[found] = _refined(values[voxel], points[index[found]])
    return _separated(directions, amplitudes, count, separation_degrees)


def _refined(values: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima (M, 3) near `directions` (M, 3) of functions (M, n_coef), and their heights (M,)."""
    l_max = order_of(values.shape[1])
    moving = _moving(l_max).to(values)
    derivatives = (values @ moving.transpose(1, 2)).transpose(0, 1)  # (M, 10, n_coef)
    for _ in range(STEPS):
        f = torch.einsum("mkc,mc->mk", derivatives, sh_basis(directions, l_max))
        tangents = _tangents(directions)  # (M, 2, 3)
        # a turn about the second tangent moves along the first, and one about minus the first along the second
        axes = torch.stack([tangents[:, 1], -tangents[:, 0]], dim=1)
        gradient = torch.einsum("mia,ma->mi", axes, f[:, 1:4])
        hessian = torch.einsum("mia,mab,mjb->mij", axes, f[:, 4:][:, SQUARE], axes)
        step = _newton(gradient, hessian[:, 0, 0], hessian[:, 1, 1], hessian[:, 0, 1])
        directions = directions + (step.unsqueeze(1) @ tangents)[:, 0]
        directions = directions / directions.norm(dim=1, keepdim=True)
    heights = torch.einsum("mc,mc->m", sh_basis(directions, l_max), values)
    return directions, heights


def _newton(gradient: Tensor, xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    """(M, 2) step to the maximum of a paraboloid, uphill where it has none, at most MAX_STEP long."""
    determinant = xx * yy - xy * xy
    peaked = (determinant > 0) & (xx < 0)
    safe = torch.where(peaked, determinant, torch.ones_like(determinant))
    gx, gy = gradient.unbind(1)
    newton = torch.stack([xy * gy - yy * gx, xy * gx - xx * gy], dim=1) / safe.unsqueeze(1)
    length = gradient.norm(dim=1, keepdim=True).clamp(min=1e-12)
    step = torch.where(peaked.unsqueeze(1), newton, gradient / length * MAX_STEP / 2)
    return step * (MAX_STEP / step.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)


def _tangents(directions: Tensor) -> Tensor:
    """(M, 2, 3) orthonormal vectors that stand on `directions` (M, 3)."""
    smallest = directions.abs().argmin(dim=1)
    axis = torch.eye(3).to(directions)[smallest]
    first = torch.linalg.cross(directions, axis)
    first = first / first.norm(dim=1, keepdim=True)
    return torch.stack([first, torch.linalg.cross(directions, first)], dim=1)


def _separated(directions: Tensor, amplitudes: Tensor, count: int, degrees: float) -> tuple[Tensor, Tensor]:
    """The `count` largest, none within `degrees` of a larger one; also what Newton's method moved together."""
    order = amplitudes.argsort(dim=1, descending=True)
    amplitudes = amplitudes.gather(1, order)
    directions = directions.gather(1, order.unsqueeze(2).expand_as(directions))
    near = torch.einsum("vic,vjc->vij", directions, directions).abs() > cos(radians(degrees))
    kept = amplitudes > 0
    for j in range(1, kept.shape[1]):
        kept[:, j] &= ~(near[:, j, :j] & kept[:, :j]).any(1)
    first = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
    amplitudes = (amplitudes * kept).gather(1, first)
    chosen = directions * kept.unsqueeze(2)
    return chosen.gather(1, first.unsqueeze(2).expand(-1, -1, 3)), amplitudes
