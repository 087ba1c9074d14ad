"""Means over the voxels that count, in at least single precision."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_shape", "inside", "plain", "weighted_mean"]


def plain(values: Tensor) -> Tensor:
    """Without meta data, half precision (autocast) as float32; double stays double."""
    values = values.as_subclass(Tensor)
    return values if values.dtype == torch.float64 else values.float()


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """sum(w v) / sum(w), or 0 (with gradients 0) where no weight is positive."""
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, total, 1.0)


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
