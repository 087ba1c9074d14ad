"""Work on a few volumes at a time: temporaries stay in the CPU's cache and bounded on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["blockwise", "combine", "exact_products", "magnitude"]

CPU_BLOCK = 1 << 18  # voxels: 1 MiB of float32, so that the temporaries of a step stay in the cache
GPU_BLOCK = 1 << 23


def blockwise(function: Callable[..., Tensor], image: Tensor, *per_volume: Tensor) -> Tensor:
    """`function` applied to `image` (..., X, Y, Z) a few volumes at a time; a new tensor.

    `function` gets a block (M, X, Y, Z), then the rows of each of `per_volume` (V, ...) that belong to it (V:
    number of volumes, leading sizes flattened).  Where a gradient is asked for, all volumes are one block.
    """
    volumes = image.reshape(-1, *image.shape[-3:])
    if torch.is_grad_enabled() and any(t.requires_grad for t in (image, *per_volume)):
        return function(volumes, *per_volume).reshape(image.shape)
    result = torch.empty(volumes.shape, dtype=image.dtype, device=image.device)
    step = max(1, (GPU_BLOCK if image.is_cuda else CPU_BLOCK) // volumes[0].numel())
    for start in range(0, len(volumes), step):
        rows = slice(start, start + step)
        result[rows] = function(volumes[rows], *(t[rows] for t in per_volume))
    return result.view(image.shape)


def magnitude(real: Tensor, imaginary: Tensor | None) -> Tensor:
    """sqrt(real^2 + imaginary^2), its gradient 0 where both are 0; overwrites its input where no gradient is
    needed.
    """
    if imaginary is None:
        return real.abs()
    if torch.is_grad_enabled() and (real.requires_grad or imaginary.requires_grad):
        return torch.complex(real, imaginary).abs()
    return real.square_().addcmul_(imaginary, imaginary).sqrt_()


def combine(weights: Tensor, maps: Tensor) -> Tensor:
    """(M, X, Y, Z) sums of few `maps` (K, X, Y, Z) with `weights` (M, K), term by term and so in full
    precision.
    """
    total = weights[:, 0, None, None, None] * maps[0]
    for k in range(1, len(maps)):
        total = torch.addcmul(total, weights[:, k, None, None, None], maps[k])
    return total


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Matrix products in full float32: no TF32, no autocast."""
    if device.type != "cuda":
        with torch.autocast(device.type, enabled=False):
            yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
