"""`SteerableConv3d`: a convolution whose kernel is steerable, so that it commutes with rotations of the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmri_monai.equivariant.finite_values import check_finite
from dmri_monai.equivariant.kernel.kernel_cache import may_keep, state_of_weights
from dmri_monai.equivariant.kernel.radial import Gaussian, Radial
from dmri_monai.equivariant.kernel.steerable_kernel import PSpaceFunctions, SteerableKernel
from dmri_monai.equivariant.kernel.voxel_grid import check_centred, one_size, resolve_padding
from dmri_monai.so3 import as_irreps, channels_of, check_channels

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["SteerableConv3d"]


class SteerableConv3d(nn.Module):
    """Convolution between fields of irreps: (N, irreps_in.dim, X, Y, Z) -> (N, irreps_out.dim, X', Y', Z').

    The kernel is a learned combination of (radial x spherical harmonic x Clebsch-Gordan) functions of the offset input
    minus output voxel, sampled on the grid; axes and components are (x, y, z). Weiler et al. 2018, arXiv:1807.02547.

    padding: 'same', 'valid' or voxels per end.  transposed: the transposed convolution, which upsamples by `stride`.
    radial: None is Gaussian with (kernel_size + 1) // 2 centres.  spacing: voxel size (mm) along x, y, z.
    parity: True is O(3)-equivariant (reflections too); False opens every SO(3) path and ignores the letters e and o.
    l_max: highest degree of the kernel's spherical harmonics; None takes all.

    At stride > 1 the size must let the output grid be centred (stride 2: even kernels on even sizes, odd kernels on
    odd sizes); other sizes raise ValueError. In eval mode without gradients the kernel is built once and kept.
    """

    bias_index: Tensor
    layout_in: Tensor
    layout_out: Tensor

    def __init__(  # noqa: PLR0913  the arguments of torch.nn.Conv3d and those of the kernel
        self,
        irreps_in: str | Irreps,
        irreps_out: str | Irreps,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        padding: int | str = "same",
        groups: int = 1,
        bias: bool = True,
        transposed: bool = False,
        *,
        radial: Radial | None = None,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        parity: bool = True,
        l_max: int | None = None,
        zero_offset: str = "linear",
        output_padding: int = 0,
    ) -> None:
        super().__init__()
        if output_padding:
            raise ValueError(
                f"output_padding {output_padding} adds voxels at one end only, which is not equivariant: "
                "use kernel_size=4, stride=2, padding=1 to double a size"
            )
        self.irreps_in, self.irreps_out = as_irreps(irreps_in), as_irreps(irreps_out)
        self.kernel_size = one_size(kernel_size, "kernel_size")
        self.stride, self.dilation = one_size(stride, "stride"), one_size(dilation, "dilation")
        self.padding = resolve_padding(padding, self.kernel_size, self.dilation, self.stride, transposed)
        self.groups, self.transposed = one_size(groups, "groups"), transposed
        self.expected, self.dim_out = channels_of(self.irreps_in), channels_of(self.irreps_out).dim
        self._check_transposed_size()
        radial = (radial or Gaussian()).resolved((self.kernel_size + 1) // 2)
        functions = PSpaceFunctions(radial, l_max, parity, zero_offset)  # type: ignore[arg-type]
        group_in, group_out = _one_group(self.irreps_in, groups), _one_group(self.irreps_out, groups)
        self.kernels = nn.ModuleList(
            SteerableKernel(group_in, group_out, self.kernel_size, functions, spacing) for _ in range(groups)
        )
        self._check_reachable(group_in, group_out)
        self._init_bias(bias, parity)
        self._init_layout()
        self._kept: tuple[tuple[tuple[int, int], ...], Tensor, Tensor | None] | None = None
        self.register_load_state_dict_post_hook(_forget)

    def _check_transposed_size(self) -> None:
        reach = self.dilation * (self.kernel_size - 1) + 1
        if self.transposed and reach < self.stride:
            raise ValueError(
                f"kernel extent {reach} is smaller than stride {self.stride}: output voxels would be skipped"
            )

    def _check_reachable(self, irreps_in: Irreps, irreps_out: Irreps) -> None:
        kernel = self.kernels[0]
        assert isinstance(kernel, SteerableKernel)
        for o, entry in enumerate(irreps_out):
            if not kernel.reaches(o):
                raise ValueError(
                    f"no kernel of size {self.kernel_size} carries {irreps_in} to {entry.ir}: "
                    "its parity, l_max or radial basis allow none"
                )

    def _init_bias(self, bias: bool, parity: bool) -> None:
        scalar = [
            ir.l == 0 and (ir.p == 1 or not parity)
            for mul, ir in self.irreps_out
            for _ in range(mul * ir.dim)
        ]
        self.register_buffer("bias_index", torch.tensor(scalar).nonzero().flatten(), persistent=False)
        has = bias and any(scalar)
        self.bias = nn.Parameter(torch.zeros(sum(scalar))) if has else None

    def _init_layout(self) -> None:
        layout_in, layout_out = (
            _group_layout(self.irreps_in, self.groups),
            _group_layout(self.irreps_out, self.groups),
        )
        self.register_buffer("layout_in", layout_in, persistent=False)
        self.register_buffer("layout_out", layout_out.argsort(), persistent=False)

    def extra_repr(self) -> str:
        return (
            f"{self.irreps_in} -> {self.irreps_out}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, transposed={self.transposed}"
        )

    def train(self, mode: bool = True) -> SteerableConv3d:
        self._forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SteerableConv3d:
        self._forget()
        return super()._apply(fn, recurse)

    def _forget(self) -> None:
        self._kept = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def kernel(self) -> Tensor:
        """Weight for conv3d (dim_out, dim_in / groups, k, k, k), or for conv_transpose3d; channels sorted by group."""
        k = self.kernel_size
        with torch.autocast(self.bias_index.device.type, enabled=False):
            parts = [kernel().unflatten(-1, (k, k, k)) for kernel in self.kernels]
            if self.transposed:  # there the output voxel lies at input + tap: the offset is reversed
                return torch.cat([part.flip(2, 3, 4).transpose(0, 1) for part in parts])
            return torch.cat(parts)

    def kernel_at(self, offsets: Tensor) -> Tensor:
        """(dim_out, dim_in, P) float64 kernel function at continuous `offsets` (P, 3), in half kernel widths.

        K(R p) = D_out(R) K(p) D_in(R)^T for every rotation R.
        """
        if self.groups > 1:
            raise ValueError(f"kernel_at is defined for one group, this layer has {self.groups}")
        kernel = self.kernels[0]
        assert isinstance(kernel, SteerableKernel)
        return kernel.at(offsets)

    def _full_bias(self) -> Tensor | None:
        if self.bias is None:
            return None
        full = self.bias.new_zeros(self.dim_out).index_copy(0, self.bias_index, self.bias)
        return full if self.groups == 1 else full[self.layout_out.argsort()]

    def _weights(self) -> tuple[Tensor, Tensor | None]:
        """Kernel and bias, kept between calls in eval mode while no gradient is asked for."""
        if not may_keep(self):
            return self.kernel(), self._full_bias()
        state = state_of_weights(self)
        if self._kept is None or self._kept[0] != state:
            self._kept = (state, self.kernel(), self._full_bias())
        return self._kept[1:]

    def forward(self, x: Tensor) -> Tensor:
        check_channels(x, self.expected, (5,), "SteerableConv3d")
        if not self.transposed:
            check_centred(x.shape[2:], self.kernel_size, self.stride, self.padding, self.dilation)
        check_finite(x, "SteerableConv3d")
        weight, bias = self._weights()
        if self.groups > 1:
            x = x.index_select(1, self.layout_in)
        y = self._convolve(x, _match(weight, x), None if bias is None else _match(bias, x))
        return y.index_select(1, self.layout_out) if self.groups > 1 else y

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.transposed:
            return functional.conv_transpose3d(
                x, weight, bias, self.stride, self.padding, 0, self.groups, self.dilation
            )
        return functional.conv3d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.no_grad()
    def to_dense(self) -> nn.Conv3d | nn.ConvTranspose3d:
        """An ordinary convolution with the same output: no irreps, no e3nn, one group."""
        kind = nn.ConvTranspose3d if self.transposed else nn.Conv3d
        weight = self.kernel().to(next(self.parameters()).dtype)
        dense = kind(
            self.irreps_in.dim,
            self.irreps_out.dim,
            self.kernel_size,
            self.stride,
            self.padding,
            dilation=self.dilation,
            bias=self.bias is not None,
        ).to(weight)
        dense.weight.copy_(self._ungrouped(weight))
        if self.bias is not None and dense.bias is not None:
            dense.bias.zero_()
            dense.bias[self.bias_index] = self.bias
        return dense.train(self.training)

    def _ungrouped(self, weight: Tensor) -> Tensor:
        """The block-diagonal weight of one group with channels in irreps order."""
        rows, columns = self.layout_out.argsort(), self.layout_in
        if self.transposed:
            rows, columns = columns, rows
        blocks = weight.chunk(self.groups)
        full = weight.new_zeros(len(rows), len(columns), *weight.shape[2:])
        step = len(columns) // self.groups
        for g, (block, part) in enumerate(zip(blocks, rows.chunk(self.groups), strict=True)):
            full[part.unsqueeze(1), columns[g * step : (g + 1) * step]] = block
        return full


def _match(tensor: Tensor, x: Tensor) -> Tensor:
    """`tensor` in the precision of a half-precision `x`; float32 input on float64 weights stays an error."""
    return tensor.to(x.dtype) if x.dtype in (torch.float16, torch.bfloat16) else tensor


def _one_group(irreps: Irreps, groups: int) -> Irreps:
    for mul, ir in irreps:
        if mul % groups:
            raise ValueError(f"groups {groups} does not divide the {mul} channels of {ir} in {irreps}")
    return type(irreps)([(mul // groups, ir) for mul, ir in irreps])


def _group_layout(irreps: Irreps, groups: int) -> Tensor:
    """(dim,) channel indices sorted by group; within a group in the order of `irreps`."""
    parts = [torch.arange(s.start, s.stop).chunk(groups) for s in irreps.slices()]
    return torch.cat([part[g] for g in range(groups) for part in parts])


def _forget(module: SteerableConv3d, _incompatible: object) -> None:
    """Hook: newly loaded weights make the kept kernel stale."""
    module._forget()
