"""Convolutions that the operators are made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dmri_monai.equivariant.pq.contraction.interface import ConvOptions

__all__ = ["dense_conv", "filtered_sum", "plain_conv", "responses"]


def _cube(weight: Tensor) -> Tensor:
    """(..., k³) as (..., k, k, k)."""
    return weight.unflatten(-1, (round(int(weight.shape[-1]) ** (1 / 3)),) * 3)


def _conv(x: Tensor, weight: Tensor, options: ConvOptions) -> Tensor:
    """conv3d of x (N, C, X, Y, Z) with a weight (D, C, k³), in the precision of `x`."""
    kernel = _cube(weight).to(x.dtype)
    return functional.conv3d(x, kernel, None, options.stride, options.padding, options.dilation)


def dense_conv(x: Tensor, full: Tensor, options: ConvOptions) -> Tensor:
    """x (N, dim_in, Q_in, X, Y, Z) through ([N,] dim_out, Q_out, dim_in, Q_in, P) -> (N, dim_out, Q_out, ...)."""
    if full.ndim == 6:
        return torch.cat([dense_conv(a.unsqueeze(0), b, options) for a, b in zip(x, full, strict=True)])
    y = _conv(x.flatten(1, 2), full.flatten(2, 3).flatten(0, 1), options)
    return y.unflatten(1, full.shape[:2])


def plain_conv(x: Tensor, weight: Tensor, options: ConvOptions) -> Tensor:
    """The sum over samples of x (N, dim_in, Q, ...) through one kernel (dim_out, dim_in, P): (N, dim_out, 1, ...)."""
    return _conv(x.sum(2), weight, options).unsqueeze(2)


def responses(x: Tensor, functions: Tensor, options: ConvOptions) -> Tensor:
    """Every channel filtered by every function: x (N, C, X, Y, Z), functions (B, P) -> (N, C, B, X', Y', Z')."""
    y = _conv(x.flatten(0, 1).unsqueeze(1), functions.unsqueeze(1), options)
    return y.unflatten(0, x.shape[:2])


def filtered_sum(x: Tensor, functions: Tensor, options: ConvOptions) -> Tensor:
    """Every channel filtered by a function of its own and summed: x (N, C, B, X, Y, Z), (B, P) -> (N, C, ...)."""
    flat = x.flatten(0, 1).contiguous(
        memory_format=torch.channels_last_3d
    )  # with one output, twice as fast on CPU
    return _conv(flat, functions.unsqueeze(0), options).squeeze(1).unflatten(0, x.shape[:2])
