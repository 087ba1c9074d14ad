"""`PQConv3d`: convolution over voxels and gradient samples together, for any gradient table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from dmri_monai.equivariant.finite_values import check_finite
from dmri_monai.equivariant.kernel.kernel_cache import (
    KeptKernel,
    may_keep,
    size_in_bytes,
    state_of_weights,
)
from dmri_monai.equivariant.kernel.voxel_grid import (
    check_centred,
    checked_spacing,
    one_size,
    resolve_padding,
)
from dmri_monai.equivariant.pq.contraction import STRATEGY_NAMES, ConvOptions, KernelContext, build_operator
from dmri_monai.equivariant.pq.kernels import Kernel, PQTensorProduct
from dmri_monai.equivariant.pq.qvectors import check_weights, checked_q
from dmri_monai.so3 import as_irreps, channels_of, check_channels

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["PQConv3d"]

LARGEST_KEPT = 2**28  # bytes: dense kernels of long tables take gigabytes, and a network has several layers


def _modes_again() -> dict[str, Any]:
    """Option of `checkpoint`: modes of torch functions that are on now are on in the recomputation too."""
    modes = _get_current_function_mode_stack()

    @contextmanager
    def again() -> Iterator[None]:
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            yield

    return {"context_fn": lambda: (nullcontext(), again())} if modes else {}


class PQConv3d(nn.Module):
    """Equivariant convolution between fields on p-space (voxels) and q-space (gradient samples).

    forward(x, q_in, q_out, mask_in, mask_out): x (N, irreps_in.dim, Q_in, X, Y, Z) -> (N, irreps_out.dim, Q_out,
    X', Y', Z').  q_in=False or q_out=False in the constructor: that side has no q-space, no Q axis and no vectors.

    q_in, q_out: (Q, 3), (1, Q, 3) or (N, Q, 3) q-vectors sqrt(b / b_max) g in the voxel frame (`gradients.q_vectors`);
    q_out None where both sides have q-space means q_in.  mask_in, mask_out: (N, Q) bool; masked input samples add
    nothing and are not counted, masked output samples are zero.  weights_in: (Q_in,) or (N, Q_in) quadrature weights.

    kernel: `PSpace`, `QSpace`, `PQDiff`, `PQTensorProduct`, `Sum` or `Concat`.  scaling: the sum over q_in is divided
    by the number of valid samples ('mean') or its root ('sqrt').  antipodal: averages the kernel over the signs of all
    b-vectors, S(q) = S(-q); False is the published kernel.  parity, spacing (mm) as in `SteerableConv3d`.
    strategy: how the kernel is applied, always with the same result; 'auto' takes the cheapest, and so does a strategy
    that the kernel lacks: 'p_basis' and 'p_last' are of kernels that factorise, 'spectral' of `PQDiff` at stride 1.
    checkpoint: recompute in the backward pass instead of storing what lies between contractions.

    Sizes and strides as in `SteerableConv3d`.  In eval mode without gradients what depends on weights and tables alone
    is built once and kept, up to 256 MiB, while both stay the same.
    """

    bias_index: Tensor

    def __init__(  # noqa: PLR0913  the arguments of a convolution and those of the kernel
        self,
        irreps_in: str | Irreps,
        irreps_out: str | Irreps,
        kernel_size: int | Sequence[int] = 3,
        kernel: Kernel | None = None,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        padding: int | str = "same",
        bias: bool = True,
        *,
        q_in: bool = True,
        q_out: bool = True,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        parity: bool = True,
        antipodal: bool = True,
        scaling: Literal["mean", "sqrt"] = "mean",
        strategy: Literal["auto", "dense", "p_basis", "p_last", "spectral"] = "auto",
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if scaling not in ("mean", "sqrt"):
            raise ValueError(f"scaling must be 'mean' or 'sqrt', got {scaling!r}")
        if strategy not in STRATEGY_NAMES:
            raise ValueError(f"strategy must be one of {STRATEGY_NAMES}, got {strategy!r}")
        self.irreps_in, self.irreps_out = as_irreps(irreps_in), as_irreps(irreps_out)
        self.expected, self.dim_out = channels_of(self.irreps_in), channels_of(self.irreps_out).dim
        self.kernel_size = one_size(kernel_size, "kernel_size")
        step, spread = one_size(stride, "stride"), one_size(dilation, "dilation")
        pad = resolve_padding(padding, self.kernel_size, spread, step, transposed=False)
        self.options = ConvOptions(step, pad, spread, strategy)
        self.context = KernelContext(
            parity, antipodal, q_in, q_out, self.kernel_size, checked_spacing(spacing)
        )
        self.scaling, self.checkpoint = scaling, checkpoint
        self.operator = build_operator(
            kernel or PQTensorProduct(), self.irreps_in, self.irreps_out, self.context
        )
        self._check_reachable(kernel)
        scalar = [
            ir.l == 0 and (ir.p == 1 or not parity)
            for mul, ir in self.irreps_out
            for _ in range(mul * ir.dim)
        ]
        self.register_buffer("bias_index", torch.tensor(scalar).nonzero().flatten(), persistent=False)
        self.bias = nn.Parameter(torch.zeros(sum(scalar))) if bias and any(scalar) else None
        self._kept: KeptKernel | None = None

    def _check_reachable(self, kernel: Kernel | None) -> None:
        for o, entry in enumerate(self.irreps_out):
            if not self.operator.reaches(o):
                raise ValueError(
                    f"{kernel or 'the kernel'} with parity={self.context.parity}, antipodal={self.context.antipodal} "
                    f"carries none of {self.irreps_in} to {entry.ir}"
                )

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}, kernel_size={self.kernel_size}, {self.context}"

    def train(self, mode: bool = True) -> PQConv3d:
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PQConv3d:
        self._kept = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def forward(
        self,
        x: Tensor,
        q_in: Tensor | None = None,
        q_out: Tensor | None = None,
        mask_in: Tensor | None = None,
        mask_out: Tensor | None = None,
        weights_in: Tensor | None = None,
    ) -> Tensor:
        check_channels(x, self.expected, (6 if self.context.has_q_in else 5,), "PQConv3d")
        check_centred(x.shape[-3:], self.kernel_size, *self.options[:2], self.options.dilation)
        q_in, q_out, mask_out = self._sides(x, q_in, q_out, mask_in, mask_out)
        check_finite(x, "PQConv3d", mask_in)
        samples = self._weighted(x if self.context.has_q_in else x.unsqueeze(2), mask_in, weights_in)
        return self._finish(self._contracted(samples, q_out, q_in), mask_out)

    def _contracted(self, samples: Tensor, q_out: Tensor | None, q_in: Tensor | None) -> Tensor:
        """The operator applied to weighted samples, with what was kept from the last call where that fits."""
        if not may_keep(self):
            if self.checkpoint and torch.is_grad_enabled():
                arguments = (samples, q_out, q_in, self.options)
                return checkpoint(self.operator, *arguments, use_reentrant=False, **_modes_again())
            return self.operator(samples, q_out, q_in, self.options)
        state, kept = state_of_weights(self.operator), self._kept
        if kept is None or not kept.fits(state, (q_out, q_in), samples):
            with torch.autocast(samples.device.type, enabled=False):
                arrays = self.operator.prepare(q_out, q_in, samples, self.options)
            tables = tuple(None if q is None else q.clone() for q in (q_out, q_in))
            kept = KeptKernel(state, tables, samples.shape, samples.device, arrays)
            self._kept = kept if size_in_bytes(arrays) <= LARGEST_KEPT else None
        return self.operator.contract(samples, kept.arrays, self.options)

    def _finish(self, y: Tensor, mask_out: Tensor | None) -> Tensor:
        """Bias, output mask, and the axes (N, dim_out, [Q_out,] X, Y, Z)."""
        if self.bias is not None:
            full = self.bias.new_zeros(self.dim_out).index_copy(0, self.bias_index, self.bias)
            y = y + full.to(y.dtype).view(-1, 1, 1, 1, 1)
        if mask_out is not None:
            y = torch.where(mask_out[:, None, :, None, None, None], y, 0.0)
        return y if self.context.has_q_out else y.squeeze(2)

    def _sides(
        self,
        x: Tensor,
        q_in: Tensor | None,
        q_out: Tensor | None,
        mask_in: Tensor | None,
        mask_out: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Checked q-vectors in the kernel's precision (masked ones set to 0), and the output mask."""
        if self.context.has_q_in and self.context.has_q_out and q_out is None:
            q_out, mask_out = q_in, mask_in if mask_out is None else mask_out
        n_in = x.shape[2] if self.context.has_q_in else None
        q_in = checked_q(q_in, mask_in, "q_in", len(x), n_in, self.context.has_q_in)
        q_out = checked_q(q_out, mask_out, "q_out", len(x), None, self.context.has_q_out)
        if not len(x):  # tables of an empty batch
            q_in, q_out = (None if q is None else q.new_zeros(q.shape[-2:]) for q in (q_in, q_out))
        batched = [q is not None and q.ndim == 3 for q in (q_in, q_out)]
        if any(batched) and not all(batched):
            q_in = None if q_in is None else q_in.expand(len(x), -1, -1)
            q_out = None if q_out is None else q_out.expand(len(x), -1, -1)
        dtype = next(self.operator.parameters()).dtype
        dtype = torch.promote_types(dtype, torch.float32)
        return (
            None if q_in is None else q_in.to(dtype),
            None if q_out is None else q_out.to(dtype),
            mask_out,
        )

    def _weighted(self, x: Tensor, mask: Tensor | None, weights: Tensor | None) -> Tensor:
        """Samples (N, dim, Q_in, X, Y, Z) times their share of the sum over q_in."""
        if mask is not None:
            x = torch.where(mask[:, None, :, None, None, None], x, 0.0)
        if mask is None and weights is None:
            count = x.shape[2]
            return x / (count if self.scaling == "mean" else count**0.5)
        shape = (x.shape[0], x.shape[2])
        share = x.new_ones(shape) if mask is None else mask.to(x.dtype)
        if weights is not None:
            check_weights(weights, shape)
            share = share * weights.to(share)
        total = share.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        share = share / (total if self.scaling == "mean" else total.sqrt())
        return x * share[:, None, :, None, None, None]

    @torch.no_grad()
    def dense_kernel(self, q_out: Tensor | None = None, q_in: Tensor | None = None) -> Tensor:
        """(dim_out, Q_out, dim_in, Q_in, k, k, k): the layer as one linear map, bias left out.

        q_out, q_in: (Q, 3), None for a side without q-space (which keeps an axis of size 1).  conv3d with this kernel
        on x.flatten(1, 2) gives the layer's output, scaling included.
        """
        dtype = torch.promote_types(next(self.operator.parameters()).dtype, torch.float32)
        sides = []
        for name, q, has in (("q_out", q_out, self.context.has_q_out), ("q_in", q_in, self.context.has_q_in)):
            checked = checked_q(q, None, name, 1, None, has)
            if checked is not None and checked.ndim != 2:
                raise ValueError(f"{name} has {checked.ndim} axes, dense_kernel takes one table (Q, 3)")
            sides.append(None if checked is None else checked.to(dtype))
        full = self.operator.dense(*sides)
        full = full / (full.shape[3] if self.scaling == "mean" else full.shape[3] ** 0.5)
        return full.unflatten(-1, (self.kernel_size,) * 3)
