"""The kernel of the joint offset p - dq, `PQDiff`: built densely, as neither space can be contracted alone."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.grid import kernel_offsets
from dmri_monai.equivariant.pq.contraction import ConvOptions, Operator, dense_conv
from dmri_monai.equivariant.pq.kernels import PQDiff
from dmri_monai.equivariant.pq.paths import (
    QRadials,
    Setting,
    harmonic_scale,
    linear_map,
    linear_pairs,
    shape_of,
)
from dmri_monai.equivariant.pq.qgeometry import joint_functions
from dmri_monai.equivariant.radial import RadialFunctions
from dmri_monai.so3 import Constants, clebsch_gordan, harmonic_couplings

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["DifferenceKernel"]


class _Pair(NamedTuple):
    """Filter degrees between one entry of each irreps, and its sizes."""

    keys: tuple[str, ...]
    degrees: tuple[int, ...]
    mul_out: int
    mul_in: int
    dim_out: int
    dim_in: int


class DifferenceKernel(Operator):
    """Operator of `PQDiff`. x (N, dim_in, Q_in, X, Y, Z) -> (N, dim_out, Q_out, X', Y', Z').

    `weight` holds, per pair of irreps (out-major), an array (degree, p-radial, q_out-radial, q_in-radial, channel out,
    channel in); `linear` the plain map used where p = dq.
    """

    def __init__(self, kernel: PQDiff, irreps_in: Irreps, irreps_out: Irreps, setting: Setting) -> None:
        super().__init__()
        self.setting, self.unit = setting, kernel.unit_q_difference
        self.masked = kernel.zero_offset == "linear"
        self.q_radials = QRadials(kernel, setting)
        self.p_radial = RadialFunctions(kernel.p_radial.resolved((setting.kernel_size + 1) // 2))
        self.shape_in, self.shape_out = shape_of(irreps_in), shape_of(irreps_out)
        self._init_pairs(kernel, irreps_in, irreps_out)
        per_degree = self.p_radial.n_out * self.q_radials.n_out * self.q_radials.n_in
        self.sizes = [len(p.degrees) * per_degree * p.mul_out * p.mul_in for p in self.pairs]
        self.weight = nn.Parameter(torch.empty(sum(self.sizes)))
        self.linear_pairs = linear_pairs(irreps_in, irreps_out, setting) if self.masked else []
        count = sum(irreps_in[i].mul * irreps_out[o].mul for i, o in self.linear_pairs)
        self.linear = nn.Parameter(torch.empty(count)) if self.masked else None
        self.reset_parameters()

    def _init_pairs(self, kernel: PQDiff, irreps_in: Irreps, irreps_out: Irreps) -> None:
        offsets = kernel_offsets(self.setting.kernel_size, self.setting.spacing)
        tensors = {"offsets": offsets}
        self.pairs: list[_Pair] = []
        for mul_out, ir_out in irreps_out:
            for mul_in, ir_in in irreps_in:
                degrees = tuple(kernel.degrees(ir_in, ir_out, self.setting.parity))
                keys = tuple(f"out_{ir_out}_in_{ir_in}_l{degree}" for degree in degrees)
                for key, degree in zip(keys, degrees, strict=True):
                    coupling = sqrt(ir_out.dim) * clebsch_gordan(ir_out.l, ir_in.l, degree)
                    tensors[key] = coupling * harmonic_scale(kernel, degree)
                self.pairs.append(_Pair(keys, degrees, mul_out, mul_in, ir_out.dim, ir_in.dim))
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

    def dense(self, q_out: Tensor | None, q_in: Tensor | None, offsets: Tensor | None = None) -> Tensor:
        """(..., dim_out, Q_out, dim_in, Q_in, P) whole kernel, at the voxels of the kernel or at any `offsets`."""
        mirrored = offsets is None
        offsets = self.constants.offsets if offsets is None else offsets
        outer, inner = self.q_radials(q_out, q_in, offsets)
        radial = self.p_radial(offsets.norm(dim=-1))
        couplings = [getattr(self.constants, f"climb_{index}") for index in range(self.l_max)]
        harmonics, zero = joint_functions(
            q_out,
            q_in,
            offsets,
            couplings,
            l_max=self.l_max,
            unit=self.unit,
            antipodal=self.setting.antipodal,
            mask_zero=self.masked,
            mirrored=mirrored,
        )
        shaped = [h.unsqueeze(-1) * inner.unsqueeze(-2).unsqueeze(-4).unsqueeze(-5) for h in harmonics]
        weights = self.weight.to(outer.dtype).split(self.sizes)
        blocks = [
            self._block(pair, part, shaped, outer, radial)
            for pair, part in zip(self.pairs, weights, strict=True)
        ]
        columns = len(self.shape_in)
        rows = [torch.cat(blocks[start : start + columns], -3) for start in range(0, len(blocks), columns)]
        full = torch.cat(rows, dim=-5)
        if self.linear is None:
            return full
        matrix = linear_map(self.linear.to(outer.dtype), self.shape_in, self.shape_out, self.linear_pairs)
        return full + torch.einsum("dv,...qps->...dqvsp", matrix, zero)

    def _block(
        self, pair: _Pair, weight: Tensor, shaped: list[Tensor], outer: Tensor, radial: Tensor
    ) -> Tensor:
        """(..., mul_out·d_out, Q_out, mul_in·d_in, Q_in, P) of one pair of irreps.

        `shaped` holds phi_i(|q_in|) Y_l(p - dq), each (..., Q_out, P, Q_in, 2l+1, n_i).
        """
        lead = shaped[0].shape[:-5]
        n_out, taps, n_in = shaped[0].shape[-5:-2]
        d_out, d_in = pair.mul_out * pair.dim_out, pair.mul_in * pair.dim_in
        if not pair.degrees:
            return outer.new_zeros(*lead, d_out, n_out, d_in, n_in, taps)
        angular = torch.cat(
            [
                torch.einsum(
                    "mnj,...qpsji->...qpimns", getattr(self.constants, key).to(outer.dtype), shaped[degree]
                )
                for key, degree in zip(pair.keys, pair.degrees, strict=True)
            ],
            dim=-4,
        ).flatten(-3)
        mixed = weight.view(
            len(pair.degrees), radial.shape[-1], outer.shape[-1], -1, pair.mul_out, pair.mul_in
        )
        mixed = torch.einsum("lroiuv,pr->lpoiuv", mixed, radial)
        mixed = torch.einsum("lpoiuv,...qo->...qpuvli", mixed, outer).flatten(-2).flatten(-3, -2)
        full = (mixed @ angular).unflatten(-1, (pair.dim_out, pair.dim_in, n_in))
        full = full.unflatten(-4, (pair.mul_out, pair.mul_in))
        axes = len(lead)  # (..., q, p, u, v, m, n, s) -> (..., u, m, q, v, n, s, p)
        order = [*range(axes), *(axes + a for a in (2, 4, 0, 3, 5, 6, 1))]
        full = full.permute(order)
        return full.reshape(*lead, d_out, n_out, d_in, n_in, taps)

    def prepare(self, q_out: Tensor | None, q_in: Tensor | None, x: Tensor, options: ConvOptions) -> Tensor:
        return self.dense(q_out, q_in)

    def contract(self, x: Tensor, prepared: Tensor, options: ConvOptions) -> Tensor:
        return dense_conv(x, prepared, options)
