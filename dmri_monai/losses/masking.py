"""Means over the voxels that count, in at least single precision."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_classes", "check_shape", "inside", "plain", "weighted_mean"]


def plain(values: Tensor) -> Tensor:
    """Without meta data, half precision (autocast) as float32; double stays double."""
    values = values.as_subclass(Tensor)
    return values if values.dtype == torch.float64 else values.float()


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum(w v) / sum(w), or 0 (with gradients 0) where no weight is positive; NaN of weight 0 do not count."""
    total = weights.sum()
    counted = torch.where(weights > 0, values * weights, 0.0)
    return counted.sum() / torch.where(total > 0, total, 1.0)


def inside(mask: Tensor | None, valid: Tensor) -> Tensor:
    """`valid` (B, X, Y, Z) bool, and `mask` (B, 1, X, Y, Z) or (1, 1, X, Y, Z) > 0 where there is one."""
    if mask is None:
        return valid
    check_shape(
        "mask", mask, (len(mask) if len(mask) in (1, len(valid)) else len(valid), 1, *valid.shape[1:])
    )
    return valid & (mask.as_subclass(Tensor)[:, 0] > 0)


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """ValueError with both shapes where they differ."""
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")


def check_classes(
    name: str, classes: Tensor, n_classes: int, besides: str = ""
) -> tuple[Tensor, Tensor | float]:
    """`classes` (B, X, Y, Z), all from 0 to `n_classes` - 1, and what to add to a loss of them.

    On the CPU, others are a ValueError that names what there is, and nothing is to be added.  Elsewhere looking at them
    would make the CPU wait for the device in every step: they become a class that exists, and NaN is to be added, which
    ends a training by `StopAtNonFinite`.
    """
    if classes.device.type != "cpu":
        known = classes.clamp(0, n_classes - 1)
        return known, torch.where((known == classes).all(), 0.0, torch.nan)
    low, high = (int(edge) for edge in classes.aminmax()) if classes.numel() else (0, 0)
    if low < 0 or high >= n_classes:
        raise ValueError(f"{name} holds classes {low} to {high}, expected 0 to {n_classes - 1}{besides}")
    return classes, 0.0
