"""From the raw signal of any gradient table to fixed harmonic channels, the default network input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmri_monai.qspace.b0 import b0_reference, mean_b0
from dmri_monai.qspace.shell_fit import (
    ALWAYS_NEAR,
    ShellFit,
    harmonic_irreps,
    sh_fit_matrix,
    sh_orders,
    supported_order,
)
from dmri_monai.so3 import even_orders, n_coefficients

__all__ = [
    "Measurements",
    "ShellFit",
    "assign_shells",
    "channel_layout",
    "harmonic_irreps",
    "sh_fit_matrix",
    "shell_matrix",
    "signal_to_harmonics",
]

CHUNK = 1 << 17  # voxels at a time: bounds the copy of the signal that is made


def signal_to_harmonics(
    image: Tensor,
    bvals: Tensor,
    bvecs_voxel: Tensor,
    *,
    shells: Sequence[float],
    l_max: int = 4,
    mask: Tensor | None = None,
    brain: Tensor | None = None,
    weights: Tensor | None = None,
    fit: ShellFit | None = None,
) -> Tensor:
    """(B, C, X, Y, Z) harmonic channels of raw signals `image` (B, N, X, Y, Z), float32.

    bvals (B, N) s/mm², bvecs_voxel (B, N, 3) unit vectors in the voxel frame; shells: nominal
    b-values, ascending.
    mask (B, N) bool: valid rows (False: padding, which is ignored).
    brain (B, 1, X, Y, Z): where the median of the b0 is taken; by default the foreground.
    weights (B, N): weight of each measurement in the fit.
    Channels, grouped by order: mean b0 / its median; the l = 0 coefficient of S/S0 of each shell; presence of
    every shell (0 or 1, only with missing="zero"); the l = 2 coefficients of every shell; l = 4; ...  Irreps:
    :func:`harmonic_irreps`.  S/S0 is 0 in air (`min_b0`) and where it is NaN.
    Raises ValueError where a scan has no b0, lacks a shell, or a shell has too few directions.
    """
    fit = fit or ShellFit()
    _check_shapes(image, bvals, bvecs_voxel)
    _check_shells(shells)
    items = []
    for b in range(len(image)):
        rows = torch.ones_like(bvals[b], dtype=torch.bool) if mask is None else mask[b].bool()
        scan = Measurements(bvals[b], bvecs_voxel[b], rows, None if weights is None else weights[b])
        inside = None if brain is None else brain[b]
        items.append(_item_to_harmonics(image[b], scan, list(shells), l_max, inside, fit))
    return torch.stack(items)


@dataclass(frozen=True)
class Measurements:
    """One scan's table: bvals (N,) s/mm², bvecs_voxel (N, 3), valid (N,) bool, weights (N,) or None."""

    bvals: Tensor
    bvecs_voxel: Tensor
    valid: Tensor
    weights: Tensor | None


def _item_to_harmonics(
    image: Tensor,
    scan: Measurements,
    shells: list[float],
    l_max: int,
    brain: Tensor | None,
    fit: ShellFit,
) -> Tensor:
    matrix, present = shell_matrix(scan, shells, l_max, fit)
    b0 = mean_b0(image, scan.bvals, fit.b0_threshold, scan.valid)
    reference = b0_reference(b0, brain)
    matrix = (matrix * _row_scale(fit, len(shells), l_max))[channel_layout(len(shells), l_max)]
    coefficients = _fit_normalised(image, b0, matrix.float(), fit.min_b0 * reference, fit.clip)
    n = len(shells)
    parts = [(b0 / reference).nan_to_num(0.0, 0.0, 0.0).unsqueeze(0), coefficients[:n]]
    if fit.missing == "zero":
        parts.append(present.to(b0).view(-1, 1, 1, 1).expand(-1, *b0.shape))
    return torch.cat([*parts, coefficients[n:]])


def _fit_normalised(image: Tensor, b0: Tensor, matrix: Tensor, floor: Tensor, clip: float | None) -> Tensor:
    """(C, X, Y, Z) = matrix (C, N) @ S/S0 of `image` (N, X, Y, Z), by chunks of voxels; 0 where S0 <= floor.

    The matrix comes from the CPU, where choosing its columns waits for no device.
    """
    flat, inverse = image.flatten(1), torch.where(b0 > floor, 1.0 / b0, torch.zeros_like(b0)).flatten()
    used = torch.nonzero(matrix.abs().sum(dim=0) > 0).flatten()  # the others may hold anything, also NaN
    matrix, used = matrix[:, used].to(image.device), used.to(image.device)
    result = inverse.new_empty(len(matrix), flat.shape[1])
    for start in range(0, flat.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        ratio = flat[:, part].index_select(0, used).float().mul_(inverse[part])
        result[:, part] = matrix @ (ratio if clip is None else ratio.clamp_(0.0, clip))
    return result.nan_to_num_(0.0, 0.0, 0.0).view(-1, *image.shape[1:])


def shell_matrix(scan: Measurements, shells: list[float], l_max: int, fit: ShellFit) -> tuple[Tensor, Tensor]:
    """(S n_coef, N) float64 map from signal to the shells' coefficients, shell by shell; (S,) presence."""
    n_coef, members = n_coefficients(l_max), assign_shells(scan, shells, fit)
    matrix = torch.zeros(len(shells), n_coef, len(scan.bvals), dtype=torch.float64)
    for s, shell in enumerate(shells):
        index = torch.nonzero(members == s).flatten()
        if len(index) == 0:
            if fit.missing == "error":
                found = sorted({round(b) for b in scan.bvals[scan.valid].tolist()})
                raise ValueError(
                    f"no volume within {fit.tolerance:.0%} of shell b = {shell:g}; b-values: {found}"
                )
            continue
        weights = None if scan.weights is None else scan.weights[index].cpu().double()
        block = _one_shell(scan.bvecs_voxel[index].cpu(), weights, shell, l_max, fit)
        matrix[s][: len(block)][:, index] = block
    present = torch.tensor([bool((members == s).any()) for s in range(len(shells))])
    return matrix.flatten(0, 1), present


def _one_shell(directions: Tensor, weights: Tensor | None, shell: float, l_max: int, fit: ShellFit) -> Tensor:
    """(n, M) fit matrix of one shell with n <= n_coef: fewer where too_few="zero" lowers the order."""
    positive = directions if weights is None else directions[weights > 0]
    order = supported_order(positive, l_max)
    if order < l_max and (fit.too_few == "error" or order < 0):
        raise ValueError(
            f"shell b = {shell:g}: {len(positive)} directions determine harmonics up to order "
            f"{max(order, 0)}; l_max = {l_max} needs at least {n_coefficients(l_max)} different, "
            "well-spread directions"
        )
    return sh_fit_matrix(directions, order, weights, fit.smoothing)


def assign_shells(scan: Measurements, shells: list[float], fit: ShellFit) -> Tensor:
    """(N,) index of the nearest shell within the tolerance, -1 for none, for b0 and for padding."""
    bvals, nominal = scan.bvals.cpu().double(), torch.tensor(shells, dtype=torch.float64)
    distance = (bvals.unsqueeze(1) - nominal).abs()
    distance[distance > (fit.tolerance * nominal).clamp(min=ALWAYS_NEAR)] = torch.inf
    nearest, index = distance.min(dim=1)
    usable = nearest.isfinite() & (bvals > fit.b0_threshold) & scan.valid.cpu()
    return torch.where(usable, index, -1)


def _row_scale(fit: ShellFit, n_shells: int, l_max: int) -> Tensor:
    """(S n_coef, 1) float64 factor of every shell-major coefficient."""
    orders = list(even_orders(l_max))
    scale = [1.0] * len(orders) if fit.order_scale is None else list(fit.order_scale)
    if len(scale) != len(orders):
        raise ValueError(f"order_scale has {len(scale)} factors for the orders {orders}")
    return torch.tensor(scale, dtype=torch.float64)[sh_orders(l_max) // 2].repeat(n_shells).unsqueeze(1)


def channel_layout(n_shells: int, l_max: int) -> Tensor:
    """Permutation from shell-major coefficients to order-major: all shells' l = 0, all shells' l = 2, ..."""
    orders, index = sh_orders(l_max), torch.arange(n_shells * n_coefficients(l_max)).view(n_shells, -1)
    return torch.cat([index[:, orders == order].flatten() for order in even_orders(l_max)])


def _check_shapes(image: Tensor, bvals: Tensor, bvecs_voxel: Tensor) -> None:
    if image.ndim != 5:
        raise ValueError(f"image has shape {tuple(image.shape)}, expected (B, N, X, Y, Z)")
    expected = tuple(image.shape[:2])
    if tuple(bvals.shape) != expected or tuple(bvecs_voxel.shape) != (*expected, 3):
        raise ValueError(
            f"image has {expected[0]} items of {expected[1]} volumes, but b-values have shape "
            f"{tuple(bvals.shape)} and b-vectors {tuple(bvecs_voxel.shape)}"
        )


def _check_shells(shells: Sequence[float]) -> None:
    if not shells or any(not b > 0 for b in shells) or list(shells) != sorted(set(shells)):
        raise ValueError(f"shells must be positive, ascending and different b-values, got {list(shells)}")
