"""Anti-aliased pooling and upsampling by 2 that stay exact under the rotations and reflections of the cube.

Every filter is separable, symmetric and the same along all axes, and every output grid is centred in the input's; that
holds for any irreps, because each component is filtered alone.  Both modules can be compiled by TorchScript.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmri_monai.equivariant.kernel.voxel_grid import one_size

__all__ = ["EquivariantAvgPool3d", "EquivariantUpsample3d"]


def _check_axes(x: Tensor, name: str) -> None:
    if x.ndim not in [5, 6]:
        raise ValueError(
            f"{name}: input has {x.ndim} axes, expected 5 (N, C, X, Y, Z) or 6 (N, C, Q, X, Y, Z)"
        )


def _along_axes(x: Tensor, matrices: list[Tensor]) -> Tensor:
    """Apply one (m, n) matrix along each spatial axis of (N, C, [Q,] X, Y, Z): ten times as fast as 3-D pooling."""
    first, second, third = [matrix.to(x.dtype) for matrix in matrices]
    y = x.flatten(1, -4)
    y = (first @ y.flatten(3)).unflatten(3, y.shape[3:])
    return (second @ y @ third.T).unflatten(1, x.shape[1:-3])


def _identity(size: int, like: Tensor) -> Tensor:
    """(1, size, size), in at least float32: torch pools no half precision on CPU."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.eye(size, device=like.device, dtype=dtype).unsqueeze(0)


def _binomial(size: int, like: Tensor) -> Tensor:
    """(ceil(n / 2), n) weights of the filter; a binomial filter is a chain of averages of two."""
    identity = _identity(size, like)
    rows = functional.avg_pool1d(functional.pad(identity, (1, 1), mode="replicate"), 2, 1)
    return functional.avg_pool1d(functional.avg_pool1d(rows, 2 - size % 2, 1), 2, 2)[0].T


def _linear(old: int, new: int, like: Tensor) -> Tensor:
    """(new, old) weights of linear interpolation: between the old voxels for new = 2 old, onto them for 2 old - 1."""
    rows = functional.interpolate(_identity(old, like), new, mode="linear", align_corners=bool(new % 2))
    return rows[0].T


class EquivariantAvgPool3d(nn.Module):
    """Halve the grid: size n becomes ceil(n / 2), each axis on its own. (N, C, [Q,] X, Y, Z), any irreps.

    An even axis takes the binomial filter (1, 3, 3, 1) / 8 between voxels, an odd one (1, 2, 1) / 4 on every second
    voxel; border voxels are repeated.  antialias=False: plain averages of 2, for even sizes only.
    """

    def __init__(
        self,
        kernel_size: int | Sequence[int] = 2,
        stride: int | Sequence[int] | None = None,
        antialias: bool = True,
    ) -> None:
        super().__init__()
        size = one_size(kernel_size, "kernel_size")
        step = size if stride is None else one_size(stride, "stride")
        if (size, step) != (2, 2):
            raise ValueError(
                f"EquivariantAvgPool3d halves the grid: kernel_size {size}, stride {step} must both be 2"
            )
        self.antialias = antialias

    def extra_repr(self) -> str:
        return f"antialias={self.antialias}"

    def forward(self, x: Tensor) -> Tensor:
        _check_axes(x, "EquivariantAvgPool3d")
        sizes = x.shape[-3:]
        if self.antialias:
            return _along_axes(x, [_binomial(n, x) for n in sizes])
        if max([n % 2 for n in sizes]) > 0:
            raise ValueError(f"sizes {list(sizes)}: averages of 2 need even sizes, or antialias=True")
        return functional.avg_pool3d(x.flatten(1, -4), 2, 2).unflatten(1, x.shape[1:-3])


class EquivariantUpsample3d(nn.Module):
    """Double the grid by trilinear interpolation: n -> 2n, or 2n - 1 where `size` asks for it, each axis on its own.

    (N, C, [Q,] X, Y, Z), any irreps.  2n places new voxels between old ones, 2n - 1 keeps every old voxel: the inverses
    of what `EquivariantAvgPool3d` does to even and odd sizes.
    """

    def __init__(self, scale_factor: int = 2) -> None:
        super().__init__()
        if scale_factor != 2:
            raise ValueError(
                f"EquivariantUpsample3d doubles the grid: scale_factor must be 2, got {scale_factor}"
            )

    def forward(self, x: Tensor, size: list[int] | None = None) -> Tensor:
        _check_axes(x, "EquivariantUpsample3d")
        old = x.shape[-3:]
        new = [2 * n for n in old] if size is None else size
        if len(new) != 3:
            raise ValueError(f"size {list(new)} has {len(new)} entries, expected 3")
        for axis in range(3):
            n, m = old[axis], new[axis]
            if m != 2 * n and m != 2 * n - 1:
                raise ValueError(f"axis {axis}: size {n} can become {2 * n} or {2 * n - 1}, not {m}")
        return _along_axes(x, [_linear(old[axis], new[axis], x) for axis in range(3)])
