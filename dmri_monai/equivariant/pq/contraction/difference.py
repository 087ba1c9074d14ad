"""The kernel of the joint offset p - dq, `PQDiff`: neither space can be contracted alone."""

from __future__ import annotations

from itertools import accumulate
from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.finite_values import is_recording
from dmri_monai.equivariant.kernel.radial import RadialFunctions
from dmri_monai.equivariant.kernel.voxel_grid import kernel_offsets
from dmri_monai.equivariant.pq.contraction.convolutions import dense_conv
from dmri_monai.equivariant.pq.contraction.dense import dense_cost
from dmri_monai.equivariant.pq.contraction.difference_blocks import PairDegrees, dense_block, mix_block
from dmri_monai.equivariant.pq.contraction.fourier_blocks import blocks_for
from dmri_monai.equivariant.pq.contraction.interface import ConvOptions, KernelContext, Operator, Sizes
from dmri_monai.equivariant.pq.contraction.paths import (
    QRadials,
    harmonic_scale,
    linear_map,
    linear_pairs,
    shape_of,
)
from dmri_monai.equivariant.pq.contraction.spectral import contract_spectral
from dmri_monai.equivariant.pq.contraction.spectral_kernel import (
    Family,
    FamilySize,
    SpectralKernel,
    distinct_columns,
    spectral_cost,
)
from dmri_monai.equivariant.pq.kernels import PQDiff
from dmri_monai.equivariant.pq.qvectors import joint_functions
from dmri_monai.so3 import Constants, clebsch_gordan, harmonic_couplings

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["DifferenceKernel"]


class DifferenceKernel(Operator):
    """Operator of `PQDiff`. x (N, dim_in, Q_in, X, Y, Z) -> (N, dim_out, Q_out, X', Y', Z').

    `weight` holds, per pair of irreps (out-major), an array (degree, p-radial, q_out-radial, q_in-radial, channel out,
    channel in); `linear` the plain map used where p = dq.
    """

    def __init__(self, kernel: PQDiff, irreps_in: Irreps, irreps_out: Irreps, context: KernelContext) -> None:
        super().__init__()
        self.context, self.unit = context, kernel.unit_q_difference
        self.masked = kernel.zero_offset == "linear"
        self.q_radials = QRadials(kernel, context)
        self.p_radial = RadialFunctions(kernel.p_radial.resolved((context.kernel_size + 1) // 2))
        self.shape_in, self.shape_out = shape_of(irreps_in), shape_of(irreps_out)
        self._init_pairs(kernel, irreps_in, irreps_out)
        per_degree = self.p_radial.n_out * self.q_radials.n_out * self.q_radials.n_in
        self.sizes = [len(p.degrees) * per_degree * p.mul_out * p.mul_in for p in self.pairs]
        self.weight = nn.Parameter(torch.empty(sum(self.sizes)))
        self.linear_pairs = linear_pairs(irreps_in, irreps_out, context) if self.masked else []
        count = sum(irreps_in[i].mul * irreps_out[o].mul for i, o in self.linear_pairs)
        self.linear = nn.Parameter(torch.empty(count)) if self.masked else None
        self.reset_parameters()

    def _init_pairs(self, kernel: PQDiff, irreps_in: Irreps, irreps_out: Irreps) -> None:
        offsets = kernel_offsets(self.context.kernel_size, self.context.spacing)
        tensors = {"offsets": offsets}
        self.pairs: list[PairDegrees] = []
        for mul_out, ir_out in irreps_out:
            for mul_in, ir_in in irreps_in:
                degrees = tuple(kernel.degrees(ir_in, ir_out, self.context.parity))
                keys = tuple(f"out_{ir_out}_in_{ir_in}_l{degree}" for degree in degrees)
                for key, degree in zip(keys, degrees, strict=True):
                    coupling = sqrt(ir_out.dim) * clebsch_gordan(ir_out.l, ir_in.l, degree)
                    tensors[key] = coupling * harmonic_scale(kernel, degree)
                self.pairs.append(PairDegrees(keys, degrees, mul_out, mul_in, ir_out.dim, ir_in.dim))
        self.l_max = max((degree for pair in self.pairs for degree in pair.degrees), default=0)
        for index, coupling in enumerate(harmonic_couplings(self.l_max)):
            tensors[f"climb_{index}"] = coupling
        self.constants = Constants(**tensors)

    def reaches(self, o: int) -> bool:
        """Whether any input irrep is carried to output entry `o`."""
        row = self.pairs[o * len(self.shape_in) : (o + 1) * len(self.shape_in)]
        return any(pair.degrees for pair in row) or any(p == o for _, p in self.linear_pairs)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights for output of about unit variance from input of unit variance that is smooth over q."""
        offsets = self.constants.offsets
        energy = self.p_radial(offsets.norm(dim=-1)).square().sum().item() * self.q_radials.energy(offsets)
        columns = len(self.shape_in)
        for index, (pair, part) in enumerate(zip(self.pairs, self.weight.split(self.sizes), strict=True)):
            row = self.pairs[index // columns * columns : (index // columns + 1) * columns]
            fan = sum(len(p.degrees) * p.mul_in for p in row)
            if pair.degrees:
                part.normal_(0.0, 1 / sqrt(fan * energy))
        if self.linear is not None:
            self.linear.normal_(0.0, 1 / sqrt(max(1, sum(m for m, _ in self.shape_in))))

    def _harmonics(
        self, q_out: Tensor | None, q_in: Tensor | None, offsets: Tensor, mirrored: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Y_l(p - dq), each (..., Q_out, P, Q_in, 2l+1), and where p = dq."""
        return joint_functions(
            q_out,
            q_in,
            offsets,
            [getattr(self.constants, f"climb_{index}") for index in range(self.l_max)],
            l_max=self.l_max,
            unit=self.unit,
            antipodal=self.context.antipodal,
            mask_zero=self.masked,
            mirrored=mirrored,
        )

    def _couplings(self, pair: PairDegrees) -> list[Tensor]:
        return [getattr(self.constants, key) for key in pair.keys]

    def _linear_map(self, dtype: torch.dtype) -> Tensor | None:
        if self.linear is None:
            return None
        return linear_map(self.linear.to(dtype), self.shape_in, self.shape_out, self.linear_pairs)

    def dense(self, q_out: Tensor | None, q_in: Tensor | None, offsets: Tensor | None = None) -> Tensor:
        """(..., dim_out, Q_out, dim_in, Q_in, P) whole kernel, at the voxels of the kernel or at any `offsets`."""
        mirrored = offsets is None
        offsets = self.constants.offsets if offsets is None else offsets
        outer, inner = self.q_radials(q_out, q_in, offsets)
        radial = self.p_radial(offsets.norm(dim=-1))
        harmonics, zero = self._harmonics(q_out, q_in, offsets, mirrored)
        shaped = [h.unsqueeze(-1) * inner.unsqueeze(-2).unsqueeze(-4).unsqueeze(-5) for h in harmonics]
        weights = zip(self.pairs, self.weight.to(outer.dtype).split(self.sizes), strict=True)
        blocks = [dense_block(pair, self._couplings(pair), w, shaped, outer, radial) for pair, w in weights]
        columns = len(self.shape_in)
        rows = [torch.cat(blocks[start : start + columns], -3) for start in range(0, len(blocks), columns)]
        full = torch.cat(rows, dim=-5)
        matrix = self._linear_map(outer.dtype)
        return full if matrix is None else full + torch.einsum("dv,...qps->...dqvsp", matrix, zero)

    def _columns(self, degree: int) -> tuple[int, int]:
        """First and last component of the input that filters of `degree` take in."""
        starts = [0, *accumulate(mul * dim for mul, dim in self.shape_in)]
        entries = [k % len(self.shape_in) for k, pair in enumerate(self.pairs) if degree in pair.degrees]
        return starts[min(entries)], starts[max(entries) + 1]

    def _mix(self, degree: int, outer: Tensor) -> Tensor:
        """(..., Q_out, (2l+1)·r, components, i, dim_out): weights, phi_o(|q_out|) and couplings of one degree."""
        radials = (self.p_radial.n_out, self.q_radials.n_out, self.q_radials.n_in)
        weights = zip(self.pairs, self.weight.to(outer.dtype).split(self.sizes), strict=True)
        blocks = [mix_block(pair, self._couplings(pair), w, degree, outer, radials) for pair, w in weights]
        columns = len(self.shape_in)
        rows = [torch.cat(blocks[start : start + columns], -3) for start in range(0, len(blocks), columns)]
        first, last = self._columns(degree)
        return torch.cat(rows, dim=-1)[..., first:last, :, :]

    def _spectral_kernel(self, q_out: Tensor | None, q_in: Tensor | None) -> SpectralKernel:
        offsets = self.constants.offsets
        outer, inner = self.q_radials(q_out, q_in, offsets)
        radial = self.p_radial(offsets.norm(dim=-1))
        harmonics, zero = self._harmonics(q_out, q_in, offsets, mirrored=True)
        lead, n_out = zero.shape[:-3], zero.shape[-3]
        mixes = [self._mix(degree, outer) for degree in self._degrees()]
        if not inner.requires_grad:  # not made by a net that learns
            inner, expansion = distinct_columns(inner)
            mixes = [torch.einsum("...fcid,...ki->...fckd", m, expansion.unsqueeze(-3)) for m in mixes]
        families = [
            Family(harmonics[degree], radial, *self._columns(degree), mix.flatten(-4, -2))
            for degree, mix in zip(self._degrees(), mixes, strict=True)
        ]
        families = [f._replace(mix=f.mix.expand(*lead, n_out, -1, -1)) for f in families]
        inner = inner.expand(*lead, -1, -1)
        return SpectralKernel(
            families,
            inner,
            zero,
            self._linear_map(outer.dtype),
            self.context.antipodal,
            self.context.kernel_size,
        )

    def _degrees(self) -> list[int]:
        return sorted({degree for pair in self.pairs for degree in pair.degrees})

    def _is_spectral(
        self, q_out: Tensor | None, q_in: Tensor | None, x: Tensor, options: ConvOptions
    ) -> bool:
        """Whether to contract at frequencies: where asked for or, on a CPU, cheaper; never in a recorded graph."""
        learned = self.p_radial.radial.mlp is not None or any(
            q is not None and q.requires_grad for q in (q_out, q_in)
        )
        if options.stride > 1 or learned or is_recording() or not self._degrees():
            return False
        if options.strategy in ("dense", "spectral"):
            return options.strategy == "spectral"
        n_out, n_in = (1 if q is None else q.shape[-2] for q in (q_out, q_in))
        shrink = options.shrink(x.shape[3:], self.context.kernel_size)
        sizes = Sizes(n_out, n_in, x.shape[3:].numel(), shrink, x.device.type == "cpu")
        blocks = blocks_for(x.shape[3:], options.reach(self.context.kernel_size), options.padding)
        dense, spectral = self.costs(sizes, blocks.overlap)
        return sizes.on_cpu and spectral < dense

    def costs(self, sizes: Sizes, overlap: float) -> tuple[float, float]:
        """Weighted multiplications per voxel of the dense contraction and of that at frequencies."""
        dim_in, dim_out = (sum(mul * dim for mul, dim in shape) for shape in (self.shape_in, self.shape_out))
        taps, columns = self.context.kernel_size**3, [self._columns(degree) for degree in self._degrees()]
        families = [
            FamilySize((2 * degree + 1) * self.p_radial.n_out, self.q_radials.n_in * (last - first))
            for degree, (first, last) in zip(self._degrees(), columns, strict=True)
        ]
        spectral = spectral_cost(families, dim_out, taps, sizes, overlap)
        return dense_cost(dim_in * dim_out, taps, sizes), spectral

    def prepare(
        self, q_out: Tensor | None, q_in: Tensor | None, x: Tensor, options: ConvOptions
    ) -> Tensor | SpectralKernel:
        if self._is_spectral(q_out, q_in, x, options):
            return self._spectral_kernel(q_out, q_in)
        return self.dense(q_out, q_in)

    def contract(self, x: Tensor, prepared: Tensor | SpectralKernel, options: ConvOptions) -> Tensor:
        if isinstance(prepared, SpectralKernel):
            return contract_spectral(x, prepared, options)
        return dense_conv(x, prepared, options)
