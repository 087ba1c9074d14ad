"""Convolutions that the pq-operators are made of: one kernel for all samples, or one per sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["ConvOptions", "Operator", "dense_conv", "filtered_sum", "grouped_conv", "plain_conv", "responses"]


class ConvOptions(NamedTuple):
    """Arguments handed to conv3d, and the order of contraction ('auto' takes the cheapest)."""

    stride: int
    padding: int
    dilation: int
    strategy: str

    def shrink(self, sizes: torch.Size, kernel_size: int) -> float:
        """Voxels of the output per voxel of the input."""
        reach = self.dilation * (kernel_size - 1)
        ratio = 1.0
        for size in sizes:
            ratio *= ((size + 2 * self.padding - reach - 1) // self.stride + 1) / max(size, 1)
        return ratio


class Operator(nn.Module):
    """What a kernel becomes inside a layer. x (N, dim_in, Q_in, X, Y, Z) -> (N, dim_out, Q_out, X', Y', Z').

    `prepare` builds everything that depends on weights and tables alone, so that a layer in eval mode can keep it.
    """

    def reaches(self, o: int) -> bool:
        """Whether any input irrep is carried to output entry `o`."""
        raise NotImplementedError

    def dense(self, q_out: Tensor | None, q_in: Tensor | None, offsets: Tensor | None = None) -> Tensor:
        """(..., dim_out, Q_out, dim_in, Q_in, P) whole kernel, at the voxels of the kernel or at any `offsets`."""
        raise NotImplementedError

    def prepare(self, q_out: Tensor | None, q_in: Tensor | None, x: Tensor, options: ConvOptions) -> Any:
        """What `contract` needs besides the input, in at least float32; of `x` only shape and device count."""
        raise NotImplementedError

    def contract(self, x: Tensor, prepared: Any, options: ConvOptions) -> Tensor:
        """The output for `x`, from what `prepare` returned for the same tables and an input of the same shape."""
        raise NotImplementedError

    def forward(self, x: Tensor, q_out: Tensor | None, q_in: Tensor | None, options: ConvOptions) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            prepared = self.prepare(q_out, q_in, x, options)
        return self.contract(x, prepared, options)


def _cube(weight: Tensor) -> Tensor:
    """(..., k³) as (..., k, k, k)."""
    return weight.unflatten(-1, (round(int(weight.shape[-1]) ** (1 / 3)),) * 3)


def _conv(x: Tensor, weight: Tensor, options: ConvOptions, groups: int = 1) -> Tensor:
    """conv3d of x (N, C, X, Y, Z) with a weight (D, C / groups, k³), in the precision of `x`."""
    kernel = _cube(weight).to(x.dtype)
    return functional.conv3d(x, kernel, None, options.stride, options.padding, options.dilation, groups)


def grouped_conv(x: Tensor, weight: Tensor, options: ConvOptions) -> Tensor:
    """Each sample with its own kernel: x (N, Q, C, X, Y, Z), weight ([N,] Q, D, C, P) -> (N, Q, D, X', Y', Z')."""
    groups = weight.shape[:-3].numel()
    flat = x.flatten(1, 2) if weight.ndim == 4 else x.flatten(0, 2).unsqueeze(0)
    y = _conv(flat, weight.flatten(0, -3), options, groups)
    return y.reshape(len(x), x.shape[1], weight.shape[-3], *y.shape[2:])


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
