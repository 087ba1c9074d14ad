"""Anti-aliased pooling and upsampling by 2 that stay exact under the rotations and reflections of the cube.

Every filter is separable, symmetric and the same along all axes, and every output grid is centred in the input's; that
holds for any irreps, because each component is filtered alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmri_monai.equivariant.grid import one_size

__all__ = ["EquivariantAvgPool3d", "EquivariantUpsample3d"]


def _as_volumes(x: Tensor, name: str) -> tuple[Tensor, tuple[int, ...]]:
    """(N, C, [Q,] X, Y, Z) as (N, C·Q, X, Y, Z), and the leading shape to restore."""
    if x.ndim not in (5, 6):
        raise ValueError(
            f"{name}: input has {x.ndim} axes, expected 5 (N, C, X, Y, Z) or 6 (N, C, Q, X, Y, Z)"
        )
    return (x.flatten(1, 2) if x.ndim == 6 else x), tuple(x.shape[:-3])


def _along_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Apply one (m, n) matrix along each spatial axis of (N, C, X, Y, Z): ten times as fast as torch's 3-D pooling."""
    first, second, third = (matrix.to(x.dtype) for matrix in matrices)
    x = (first @ x.flatten(3)).unflatten(3, x.shape[3:])
    return second @ x @ third.T


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
        y, leading = _as_volumes(x, "EquivariantAvgPool3d")
        odd = [n for n in y.shape[2:] if n % 2]
        if self.antialias:
            return _along_axes(y, [_binomial(n, y) for n in y.shape[2:]]).unflatten(1, leading[1:])
        if odd:
            raise ValueError(f"sizes {tuple(y.shape[2:])}: averages of 2 need even sizes, or antialias=True")
        return functional.avg_pool3d(y, 2, 2).unflatten(1, leading[1:])


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

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        y, leading = _as_volumes(x, "EquivariantUpsample3d")
        old = y.shape[2:]
        new = torch.Size(size) if size is not None else torch.Size(2 * n for n in old)
        for axis, (n, m) in enumerate(zip(old, new, strict=True)):
            if m not in (2 * n, 2 * n - 1):
                raise ValueError(f"axis {axis}: size {n} can become {2 * n} or {2 * n - 1}, not {m}")
        matrices = [_linear(n, m, y) for n, m in zip(old, new, strict=True)]
        return _along_axes(y, matrices).unflatten(1, leading[1:])
