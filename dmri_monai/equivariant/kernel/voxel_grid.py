"""Voxel geometry of a kernel: offsets, and which sizes, strides and paddings keep the output grid centred."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

__all__ = ["check_centred", "checked_spacing", "kernel_offsets", "one_size", "resolve_padding"]


def one_size(value: int | Sequence[int], name: str, least: int = 1) -> int:
    """The common value of an int or a sequence of three equal ints."""
    if not isinstance(value, Integral | Sequence) or isinstance(value, str):
        raise TypeError(f"{name} must be an int or a sequence of equal ints, got {value!r}")
    values = {int(value)} if isinstance(value, Integral) else {int(v) for v in value}
    if len(values) != 1:
        raise ValueError(f"{name} {value} differs between axes: rotations exchange the axes, use one value")
    single = values.pop()
    if single < least:
        raise ValueError(f"{name} must be at least {least}, got {single}")
    return single


def checked_spacing(spacing: Sequence[float]) -> tuple[float, float, float]:
    """Voxel size as three floats; ValueError unless they are three positive lengths (mm)."""
    size = torch.as_tensor(spacing, dtype=torch.float64)
    if size.shape != (3,) or not (size.isfinite() & (size > 0)).all():
        raise ValueError(f"spacing must be three positive lengths in mm, got {size.tolist()}")
    x, y, z = size.tolist()
    return x, y, z


def kernel_offsets(kernel_size: int, spacing: Sequence[float] = (1.0, 1.0, 1.0)) -> Tensor:
    """(k³, 3) offsets input - output, C order over (x, y, z), float64, in half kernel widths of the coarsest axis.

    spacing: voxel size in mm along x, y, z. The half width is k // 2 voxels (1 for k = 1), so that on isotropic voxels
    the outermost neighbour of an odd kernel lies at length 1.
    """
    size = torch.tensor(checked_spacing(spacing), dtype=torch.float64)
    steps = torch.arange(kernel_size, dtype=torch.float64) - (kernel_size - 1) / 2
    grid = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), dim=-1).reshape(-1, 3)
    return grid * (size / size.max()) / max(kernel_size // 2, 1)


def resolve_padding(
    padding: int | str, kernel_size: int, dilation: int, stride: int, transposed: bool
) -> int:
    """Voxels of zero padding at each end; 'same' keeps the size, or divides (multiplies) it by the stride.

    Raises ValueError for 'same' with a kernel whose extent is even at stride 1: half a voxel cannot be padded, and
    padding one side only is not equivariant.
    """
    reach = dilation * (kernel_size - 1)
    if padding == "valid":
        return 0
    if padding == "same":
        if stride == 1 and reach % 2:
            raise ValueError(
                f"padding='same' with kernel_size {kernel_size}, dilation {dilation} would pad {reach} voxels "
                "unevenly, which is not equivariant: use an odd kernel or padding=0"
            )
        return reach // 2
    if isinstance(padding, str):
        raise ValueError(f"padding must be 'same', 'valid' or a number, got {padding!r}")
    return one_size(padding, "padding", least=0)


def check_centred(sizes: Sequence[int], kernel_size: int, stride: int, padding: int, dilation: int) -> None:
    """Raise ValueError unless the strided output grid is centred in the input on every axis.

    The condition is (n + 2 padding - dilation (k - 1) - 1) % stride == 0: at stride 2, even kernels on even sizes and
    odd kernels on odd sizes. A remainder would drop voxels at one end only, and rotations move that end.
    """
    for axis, size in enumerate(sizes):
        reach = dilation * (kernel_size - 1)
        span = size + 2 * padding - reach - 1
        if span < 0:
            raise ValueError(
                f"axis {axis}: size {size} is smaller than the kernel, {size - span} with padding {padding}"
            )
        if span % stride:
            raise ValueError(
                f"axis {axis}: size {size} with kernel_size {kernel_size}, stride {stride}, padding {padding} leaves "
                f"{span % stride} voxels over at one end, which is not equivariant: at stride 2 even kernels need even "
                "sizes and odd kernels odd sizes"
            )
