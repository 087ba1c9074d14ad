"""What a layer and its kernels say to each other, and what a strategy of contraction is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["STRATEGY_NAMES", "ConvOptions", "KernelContext", "Operator", "Sizes", "Strategy"]


STRATEGY_NAMES = ("auto", "dense", "p_basis", "p_last", "spectral")


class KernelContext(NamedTuple):
    """What a layer tells its kernels: symmetry group, sign convention, sides with q-space, kernel size, voxel size."""

    parity: bool
    antipodal: bool
    has_q_in: bool
    has_q_out: bool
    kernel_size: int
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)


class ConvOptions(NamedTuple):
    """Arguments handed to conv3d, and the strategy of contraction ('auto' takes the cheapest)."""

    stride: int
    padding: int
    dilation: int
    strategy: str

    def reach(self, kernel_size: int) -> int:
        """Voxels by which an output without padding is smaller than its input, at stride 1."""
        return self.dilation * (kernel_size - 1)

    def shrink(self, sizes: torch.Size, kernel_size: int) -> float:
        """Voxels of the output per voxel of the input."""
        ratio = 1.0
        for size in sizes:
            kept = size + 2 * self.padding - self.reach(kernel_size) - 1
            ratio *= (kept // self.stride + 1) / max(size, 1)
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


class Sizes(NamedTuple):
    """What a cost depends on besides the kernel. shrink: voxels of the output per voxel of the input."""

    n_out: int
    n_in: int
    voxels: int
    shrink: float
    on_cpu: bool


class Strategy(NamedTuple):
    """One way to contract a factorising kernel with its input; all give the same result.

    prepare: (factors) -> what is built from weights and tables.  contract: (x, prepared, layout, options) -> output.
    cost: (layout, sizes) -> multiplications per voxel of the input, weighted by how well they run.
    """

    prepare: Callable[..., Any]
    contract: Callable[..., Tensor]
    cost: Callable[..., float]
