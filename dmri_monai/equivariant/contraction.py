"""Convolutions that the pq-operators are made of: one kernel for all samples, or one per sample."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ConvOptions", "Operator", "dense_conv", "grouped_conv", "responses"]


class ConvOptions(NamedTuple):
    """Arguments handed to conv3d, and the order of contraction ('auto' takes the cheapest)."""

    stride: int
    padding: int
    dilation: int
    strategy: str


class Operator(nn.Module):
    """What a kernel becomes inside a layer. x (N, Q_in, dim_in, X, Y, Z) -> (N, Q_out, dim_out, X', Y', Z')."""

    def reaches(self, o: int) -> bool:
        """Whether any input irrep is carried to output entry `o`."""
        raise NotImplementedError

    def dense(self, q_out: Tensor | None, q_in: Tensor | None, offsets: Tensor | None = None) -> Tensor:
        """(..., dim_out, Q_out, dim_in, Q_in, P) whole kernel, at the voxels of the kernel or at any `offsets`."""
        raise NotImplementedError

    def forward(self, x: Tensor, q_out: Tensor | None, q_in: Tensor | None, options: ConvOptions) -> Tensor:
        raise NotImplementedError


def _cube(weight: Tensor) -> Tensor:
    """(..., k³) as (..., k, k, k)."""
    return weight.unflatten(-1, (round(int(weight.shape[-1]) ** (1 / 3)),) * 3)


def grouped_conv(x: Tensor, weight: Tensor, options: ConvOptions) -> Tensor:
    """Each sample with its own kernel: x (N, Q, C, X, Y, Z), weight ([N,] Q, D, C, P) -> (N, Q, D, X', Y', Z')."""
    groups = weight.shape[:-3].numel()
    flat = x.flatten(1, 2) if weight.ndim == 4 else x.flatten(0, 2).unsqueeze(0)
    kernel = _cube(weight.flatten(0, -3)).to(x.dtype)
    y = functional.conv3d(flat, kernel, None, options.stride, options.padding, options.dilation, groups)
    return y.reshape(len(x), x.shape[1], weight.shape[-3], *y.shape[2:])


def dense_conv(x: Tensor, full: Tensor, options: ConvOptions) -> Tensor:
    """x (N, Q_in, dim_in, X, Y, Z) through a whole kernel ([N,] dim_out, Q_out, dim_in, Q_in, P)."""
    if full.ndim == 6:
        return torch.cat([dense_conv(a.unsqueeze(0), b, options) for a, b in zip(x, full, strict=True)])
    d_out, n_out, d_in, n_in, taps = full.shape
    kernel = _cube(full.permute(1, 0, 3, 2, 4).reshape(n_out * d_out, n_in * d_in, taps)).to(x.dtype)
    y = functional.conv3d(x.flatten(1, 2), kernel, None, options.stride, options.padding, options.dilation)
    return y.unflatten(1, (n_out, d_out))


def responses(x: Tensor, functions: Tensor, options: ConvOptions) -> Tensor:
    """Every channel filtered by every function: x (N, C, X, Y, Z), functions (B, P) -> (N, C, B, X', Y', Z')."""
    kernel = _cube(functions.unsqueeze(1)).to(x.dtype)
    y = functional.conv3d(
        x.flatten(0, 1).unsqueeze(1), kernel, None, options.stride, options.padding, options.dilation
    )
    return y.unflatten(0, x.shape[:2])
