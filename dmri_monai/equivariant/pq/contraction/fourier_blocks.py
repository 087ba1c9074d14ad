"""A convolution cut into blocks of voxels that are small enough for a Fourier transform of each to pay.

Overlap-save: a block of output voxels needs `reach` more input voxels per axis; there a circular convolution is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, pi
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["FourierBlocks", "blocks_for", "kernel_waves"]

LARGEST_BLOCK = 24  # output voxels along an axis: the spectra of the kernel grow with its cube


class FourierBlocks(NamedTuple):
    """counts: blocks per axis.  edges: output voxels of a block per axis.  reach: voxels an output block lacks."""

    counts: tuple[int, ...]
    edges: tuple[int, ...]
    sizes: tuple[int, ...]
    reach: int
    padding: int

    @property
    def spans(self) -> list[int]:
        """Input voxels of a block per axis."""
        return [edge + self.reach for edge in self.edges]

    @property
    def frequencies(self) -> int:
        """Complex frequencies of a real block."""
        x, y, z = self.spans
        return x * y * (z // 2 + 1)

    @property
    def overlap(self) -> float:
        """Voxels of all blocks per voxel of the output."""
        ratio = 1.0
        for count, span, size in zip(self.counts, self.spans, self.sizes, strict=True):
            ratio *= count * span / size
        return ratio

    def split(self, x: Tensor) -> Tensor:
        """(N, C, X, Y, Z) -> (N, blocks, C, spans)."""
        missing = [
            count * edge - size for count, edge, size in zip(self.counts, self.edges, self.sizes, strict=True)
        ]
        pads = [side for extra in reversed(missing) for side in (self.padding, self.padding + extra)]
        x = functional.pad(x, pads)
        for axis, (edge, span) in enumerate(zip(self.edges, self.spans, strict=True)):
            x = x.unfold(2 + axis, span, edge)
        return x.flatten(2, 4).movedim(2, 1)

    def join(self, y: Tensor) -> Tensor:
        """(N, blocks, C, edges) -> (N, C, sizes)."""
        y = y.unflatten(1, self.counts).permute(0, 4, 1, 5, 2, 6, 3, 7)
        return (
            y.flatten(6, 7)
            .flatten(4, 5)
            .flatten(2, 3)[:, :, : self.sizes[0], : self.sizes[1], : self.sizes[2]]
        )

    def angles(self, like: Tensor) -> Tensor:
        """(frequencies, 3) radians per voxel, in the order of rfftn, float64."""
        x, y, z = self.spans
        make = {"device": like.device, "dtype": torch.float64}
        axes = (torch.fft.fftfreq(x, **make), torch.fft.fftfreq(y, **make), torch.fft.rfftfreq(z, **make))
        return 2 * pi * torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)

    def transform(self, blocks: Tensor) -> Tensor:
        """(..., spans) -> (..., frequencies, 2), real and imaginary parts."""
        return torch.view_as_real(torch.fft.rfftn(blocks, dim=(-3, -2, -1)).flatten(-3))

    def back(self, spectrum: Tensor) -> Tensor:
        """(..., frequencies, 2) -> the voxels of the output (..., edges)."""
        x, y, z = self.spans
        grid = torch.view_as_complex(spectrum.contiguous()).unflatten(-1, (x, y, z // 2 + 1))
        block = torch.fft.irfftn(grid, s=(x, y, z), dim=(-3, -2, -1))
        return block[..., : self.edges[0], : self.edges[1], : self.edges[2]]

    def back_adjoint(self, block: Tensor) -> Tensor:
        """Gradient of `back`: (..., edges) -> (..., frequencies, 2)."""
        x, y, z = self.spans
        twice = torch.full((z // 2 + 1,), 2.0, dtype=block.dtype, device=block.device)
        twice[0] = 1.0
        if z % 2 == 0:
            twice[-1] = 1.0
        padded = functional.pad(block, (0, self.reach) * 3)
        grid = torch.fft.rfftn(padded, dim=(-3, -2, -1)) * (twice / (x * y * z))
        return torch.view_as_real(grid.flatten(-3))


def blocks_for(sizes: Sequence[int], reach: int, padding: int) -> FourierBlocks:
    """Blocks of an input of `sizes` (X, Y, Z) for a kernel that reaches over `reach` + 1 voxels, at stride 1."""
    kept = tuple(size + 2 * padding - reach for size in sizes)
    counts = tuple(ceil(size / LARGEST_BLOCK) for size in kept)
    edges = tuple(ceil(size / count) for size, count in zip(kept, counts, strict=True))
    return FourierBlocks(counts, edges, kept, reach, padding)


def kernel_waves(blocks: FourierBlocks, kernel_size: int, dilation: int, like: Tensor) -> tuple[Tensor, ...]:
    """cos and sin (frequencies, H) that turn half of a kernel into its spectrum, and the shift (frequencies, 2).

    The taps of a kernel lie at p and -p in reverse order: H = ceil(k³ / 2) of them tell an even or an odd function,
    with a real or an imaginary spectrum.  The shift e^(i w c) puts the output of a kernel centred at c in place.
    """
    steps = torch.arange(kernel_size, dtype=torch.float64, device=like.device) - (kernel_size - 1) / 2
    taps = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), dim=-1).flatten(0, 2) * dilation
    angles = blocks.angles(like)
    phases = angles @ taps[: ceil(len(taps) / 2)].T
    shift = angles.sum(1) * (blocks.reach / 2)
    waves = (phases.cos(), phases.sin(), torch.stack([shift.cos(), shift.sin()], dim=-1))
    return tuple(wave.to(like.dtype) for wave in waves)
