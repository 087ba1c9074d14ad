"""Strategy "spectral" of `PQDiff`: the exact convolution, carried out at the frequencies of blocks of voxels.

R Y(p - dq) does not factorise, but it has few functions per pair of samples, whatever the number of channels:

g[q_out, (v, n, i), (j, r)] = sum over q_in of FT[R_r Y_j](q_out, q_in) · phi_i(|q_in|) FT[x](q_in, v, n)
y[q_out, (u, m)]            = FT^-1 of the sum over (v, n, i, j, r) of W phi_o(|q_out|) C[m, n, j] g

The spectra of one q_out at a time are made, used and dropped, and made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dmri_monai.equivariant.pq.contraction.fourier_blocks import FourierBlocks, blocks_for, kernel_waves
from dmri_monai.equivariant.pq.contraction.interface import ConvOptions
from dmri_monai.equivariant.pq.contraction.spectral_kernel import Family, SpectralKernel

__all__ = ["contract_spectral"]

BATCHED = (
    3.0  # time of a multiplication in a batch of small products, against one in a dense convolution (on CPUs)
)
LARGEST_CHUNK = 2**28  # bytes of the spectra of the input that are held at a time


class _Half(NamedTuple):
    """One parity of a family. functions (Q_out, H, n·r, Q_in): radial ones included, folded onto half of the taps."""

    family: int
    odd: bool
    functions: Tensor


class _Group(NamedTuple):
    """Halves of the families that take in the same columns of the input."""

    columns: tuple[int, int]
    halves: list[_Half]

    @property
    def width(self) -> int:
        """Functions of all halves."""
        return sum(half.functions.shape[2] for half in self.halves)


def contract_spectral(x: Tensor, kernel: SpectralKernel, options: ConvOptions) -> Tensor:
    """x (N, dim_in, Q_in, X, Y, Z) -> (N, dim_out, Q_out, X', Y', Z'), at stride 1."""
    if kernel.inner.ndim == 3:
        items = [contract_spectral(a.unsqueeze(0), kernel.of_item(n), options) for n, a in enumerate(x)]
        return torch.cat(items)
    blocks = blocks_for(x.shape[3:], options.reach(kernel.kernel_size), options.padding)
    split = blocks.split(x.flatten(1, 2)).flatten(0, 1).unflatten(1, x.shape[1:3])
    columns = x.shape[1] * x.shape[2] * kernel.inner.shape[-1]
    step = max(1, LARGEST_CHUNK // (columns * blocks.frequencies * 2 * kernel.inner.element_size()))
    with torch.autocast(x.device.type, enabled=False):
        mixes = [family.mix for family in kernel.families]
        parts = [
            _Spectral.apply(chunk, kernel.inner, kernel, blocks, options.dilation, *mixes)  # type: ignore[no-untyped-call]
            for chunk in split.split(step)
        ]
        y = torch.cat(parts).unflatten(0, (len(x), -1))
        y = blocks.join(y.flatten(2, 3)).unflatten(1, y.shape[2:4])
        return (y if kernel.plain is None else y + _plain(x, kernel, kernel.plain, options)).to(x.dtype)


def _plain(x: Tensor, kernel: SpectralKernel, matrix: Tensor, options: ConvOptions) -> Tensor:
    """The plain map between samples and voxels whose offset has no direction: few taps, most often p = 0 alone."""
    edges = [size + 2 * options.padding - options.reach(kernel.kernel_size) for size in x.shape[3:]]
    padded = functional.pad(x.to(matrix.dtype), (options.padding,) * 6)
    total = padded.new_zeros(len(x), x.shape[1], len(kernel.zero), *edges)
    for tap in kernel.zero.ne(0).any(-1).any(0).nonzero().flatten().tolist():
        window = padded
        for axis in range(3):
            step = tap // kernel.kernel_size ** (2 - axis) % kernel.kernel_size * options.dilation
            window = window.narrow(3 + axis, step, edges[axis])
        total = total + torch.einsum("qs,ncsxyz->ncqxyz", kernel.zero[:, tap], window)
    return torch.einsum("dc,ncqxyz->ndqxyz", matrix, total)


class _Spectral(torch.autograd.Function):
    """Blocks (B, dim_in, Q_in, spans) -> (B, dim_out, Q_out, edges); gradients of blocks, phi_i and mixing matrices."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        inner: Tensor,
        kernel: SpectralKernel,
        blocks: FourierBlocks,
        dilation: int,
        *mixes: Tensor,
    ) -> Tensor:
        work = _Work(kernel, blocks, dilation, inner)
        columns = work.columns(x, inner)
        n_out, dim_out = mixes[0].shape[-3], mixes[0].shape[-1]
        y = inner.new_empty(len(x), dim_out, n_out, *blocks.edges)
        parts = inner.new_empty(2, 2 * len(x) * blocks.frequencies, dim_out)  # even and odd
        for q in range(n_out):
            parts.zero_()
            for group, source in zip(work.groups, columns, strict=True):
                g = work.products(group, source, q)[1]
                for half, where in work.slices(group, source):
                    parts[int(half.odd)].addmm_(g[:, where], mixes[half.family][q])
            y[:, :, q] = work.back(parts, len(x))
        ctx.work = work
        ctx.save_for_backward(x, inner, *mixes)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inner, *mixes = ctx.saved_tensors
        work, wanted = ctx.work, any(ctx.needs_input_grad[:2])
        with torch.enable_grad():
            leaves = [leaf.detach().requires_grad_(wanted) for leaf in (x, inner)]
            columns = work.columns(*leaves)
        of_columns = [torch.zeros_like(source) if wanted else source for source in columns]
        of_mixes = [torch.zeros_like(mix) for mix in mixes]
        for q in range(grad.shape[2]):
            of_parts = work.back_adjoint(grad[:, :, q])
            for group, source, of_source in zip(work.groups, columns, of_columns, strict=True):
                spectrum, g = work.products(group, source.detach(), q)
                for half, where in work.slices(group, source):
                    of_mixes[half.family][q].addmm_(g[:, where].T, of_parts[int(half.odd)])
                    if wanted:
                        torch.mm(of_parts[int(half.odd)], mixes[half.family][q].T, out=g[:, where])
                if wanted:
                    for part, of_part in zip(
                        g.view(*source.shape[:2], group.width, -1), of_source, strict=True
                    ):
                        of_part.baddbmm_(spectrum.mT, part)
        if not wanted:
            return None, None, None, None, None, *of_mixes
        of_leaves = torch.autograd.grad(columns, leaves, of_columns, allow_unused=True)
        return of_leaves[0], of_leaves[1], None, None, None, *of_mixes


class _Work:
    """What both passes compute: waves, half of every function, and arrays that are used again for every q_out."""

    def __init__(self, kernel: SpectralKernel, blocks: FourierBlocks, dilation: int, like: Tensor) -> None:
        self.families, self.blocks = kernel.families, blocks
        self.cosine, self.sine, self.shift = kernel_waves(blocks, kernel.kernel_size, dilation, like)
        halves: dict[tuple[int, int], list[_Half]] = {}
        for index, family in enumerate(kernel.families):
            degree = (family.functions.shape[-1] - 1) // 2
            for odd in (False, True):
                if not kernel.antipodal or odd == bool(degree % 2):
                    folded = _Half(index, odd, _folded(family, odd, self.cosine.shape[1]))
                    halves.setdefault((family.first, family.last), []).append(folded)
        self.groups = [_Group(*entry) for entry in halves.items()]
        self.arrays: dict[tuple[int, ...], Tensor] = {}

    def columns(self, x: Tensor, inner: Tensor) -> list[Tensor]:
        """Per group (2·B, frequencies, Q_in, columns): spectra of the input times phi_i(|q_in|)."""
        re, im = self.blocks.transform(x.to(inner.dtype)).unbind(-1)
        cos, sin = self.shift.unbind(-1)
        turned = torch.stack([re * cos - im * sin, re * sin + im * cos])  # (2, B, dim_in, Q_in, frequencies)
        turned = turned.flatten(0, 1).permute(0, 3, 2, 1).unsqueeze(-1)
        return [
            (turned[..., first:last, :] * inner.unsqueeze(1)).flatten(-2) for (first, last), _ in self.groups
        ]

    def slices(self, group: _Group, source: Tensor) -> Iterator[tuple[_Half, slice]]:
        """The halves of a group, and the columns of its products that belong to each."""
        start = 0
        for half in group.halves:
            stop = start + half.functions.shape[2] * source.shape[-1]
            yield half, slice(start, stop)
            start = stop

    def products(self, group: _Group, source: Tensor, q: int) -> tuple[Tensor, Tensor]:
        """Spectra (frequencies, functions, Q_in) of one q_out, without the factor i of odd ones, and their products.

        The products (2·B·frequencies, functions·columns) are sums over q_in.  The next call overwrites both arrays.
        """
        parts, frequencies, n_in, columns = source.shape
        spectrum = self._array(source, frequencies, group.width * n_in)
        start = 0
        for half in group.halves:
            functions = half.functions[q].flatten(1)
            where = slice(start, start + functions.shape[1])
            torch.mm(self.sine if half.odd else self.cosine, functions, out=spectrum[:, where])
            start += functions.shape[1]
        spectrum = spectrum.view(frequencies, group.width, n_in)
        g = self._array(source, parts, frequencies, group.width, columns)
        for part, out in zip(source, g, strict=True):
            torch.bmm(spectrum, part, out=out)
        return spectrum, g.flatten(0, 1).flatten(1)

    def _array(self, like: Tensor, *shape: int) -> Tensor:
        if shape not in self.arrays:
            self.arrays[shape] = like.new_empty(shape)
        return self.arrays[shape]

    def back(self, parts: Tensor, n_blocks: int) -> Tensor:
        """(B, dim_out, edges) from the even and the odd part, each (2·B·frequencies, dim_out)."""
        even, odd = parts.view(2, 2, n_blocks, self.blocks.frequencies, -1)
        spectrum = torch.stack([even[0] - odd[1], even[1] + odd[0]], dim=-1)
        return self.blocks.back(spectrum.transpose(1, 2))

    def back_adjoint(self, grad: Tensor) -> Tensor:
        """Gradients (2, 2·B·frequencies, dim_out) of both parts from that of one q_out (B, dim_out, edges)."""
        re, im = self.blocks.back_adjoint(grad).permute(3, 0, 2, 1)  # each (B, frequencies, dim_out)
        return torch.stack([re, im, im, -re]).view(2, -1, grad.shape[1])


def _folded(family: Family, odd: bool, kept: int) -> Tensor:
    """(Q_out, H, n·r, Q_in): the even or odd part on the first `kept` taps, twice where a tap has a mirror image."""
    functions, sign = family.functions, -1.0 if odd else 1.0
    half = functions[:, :kept] + sign * functions.flip(1)[:, :kept]
    if functions.shape[1] % 2:  # the middle tap is its own image
        half[:, -1] *= 0.5
    return torch.einsum("qpsn,pr->qpnrs", half, family.radial[:kept]).flatten(2, 3)
