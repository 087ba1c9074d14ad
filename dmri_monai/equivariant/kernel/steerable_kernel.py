"""Precomputed orthonormal bases of steerable kernels on a voxel grid; weights times basis is a kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.kernel.radial import Radial, RadialFunctions
from dmri_monai.equivariant.kernel.voxel_grid import kernel_offsets
from dmri_monai.so3 import Constants, clebsch_gordan, spherical_harmonics

if TYPE_CHECKING:
    from e3nn.o3 import Irrep, Irreps

__all__ = ["SteerableKernel", "filter_degrees", "orthonormalise"]

ZeroOffset = Literal["linear", "basis"]
DEPENDENT = 1e-6  # a function this close to the span of earlier ones (relative length) adds nothing


def filter_degrees(
    ir_in: Irrep, ir_out: Irrep, *, l_max: int | None = None, parity: bool = True
) -> list[int]:
    """Degrees l_f of the spherical harmonics that may carry `ir_in` to `ir_out`, ascending."""
    degrees = range(abs(ir_in.l - ir_out.l), ir_in.l + ir_out.l + 1)
    allowed = [l for l in degrees if not parity or ir_in.p * ir_out.p == (-1) ** l]  # noqa: E741
    return [l for l in allowed if l_max is None or l <= l_max]  # noqa: E741


def orthonormalise(rows: Tensor) -> Tensor:
    """(m, n) transform T, m <= n, such that T @ rows has orthonormal rows with the span of `rows` (n, d), float64.

    Gram-Schmidt in the given order, twice for accuracy. Unlike an SVD it has one answer on every machine, which
    weights in a state dict rely on.
    """
    kept: list[Tensor] = []
    transforms: list[Tensor] = []
    scale = rows.norm(dim=1).amax() if len(rows) else 0.0
    for index, row in enumerate(rows):
        mix = torch.zeros(len(rows), dtype=rows.dtype)
        mix[index] = 1.0
        rest = row
        for _ in range(2 if kept else 0):
            overlap = torch.stack(kept) @ rest
            rest = rest - overlap @ torch.stack(kept)
            mix = mix - overlap @ torch.stack(transforms)
        length = rest.norm()
        if length > DEPENDENT * max(row.norm(), 1e-3 * scale):
            kept.append(rest / length)
            transforms.append(mix / length)
    return torch.stack(transforms) if transforms else rows.new_zeros(0, len(rows))


@dataclass(frozen=True)
class PSpaceFunctions:
    """What a p-kernel may be made of: `radial` x spherical harmonics up to `l_max`, and the rule at zero offset."""

    radial: Radial
    l_max: int | None = None
    parity: bool = True
    zero_offset: ZeroOffset = "linear"
    filters: Mapping[tuple[int, int], Sequence[int]] | None = None

    def __post_init__(self) -> None:
        if self.zero_offset not in ("linear", "basis"):
            raise ValueError(f"zero_offset must be 'linear' or 'basis', got {self.zero_offset!r}")

    def degrees(self, ir_in: Irrep, ir_out: Irrep) -> list[int]:
        degrees = filter_degrees(ir_in, ir_out, l_max=self.l_max, parity=self.parity)
        chosen = degrees if self.filters is None else self.filters.get((ir_in.l, ir_out.l), ())
        return [degree for degree in degrees if degree in chosen]

    def has_linear(self, ir_in: Irrep, ir_out: Irrep) -> bool:
        """Whether a plain linear map between the two stands at zero offset."""
        return self.zero_offset == "linear" and 0 in filter_degrees(ir_in, ir_out, parity=self.parity)

    def angular(self, ir_in: Irrep, ir_out: Irrep, offsets: Tensor) -> list[Tensor]:
        """One (d_out, d_in, P) array per filter degree: sqrt(2 l_out + 1) w3j(l_out, l_in, l_f) Y_lf(offsets)."""
        degrees = self.degrees(ir_in, ir_out)
        harmonics = spherical_harmonics(offsets, max(degrees, default=0))
        arrays = []
        for degree in degrees:
            coupling = sqrt(2 * ir_out.l + 1) * clebsch_gordan(ir_out.l, ir_in.l, degree)
            values = harmonics[degree]
            if self.zero_offset == "linear":
                values = values * (offsets.norm(dim=-1, keepdim=True) > 0)
            arrays.append(torch.einsum("mnj,pj->mnp", coupling, values))
        return arrays

    def linear(self, ir_out: Irrep, offsets: Tensor) -> Tensor:
        """(d_out, d_out, P): the identity at zero offset, zero elsewhere."""
        at_zero = (offsets.norm(dim=-1) == 0).to(offsets.dtype)
        return torch.eye(ir_out.dim, dtype=offsets.dtype).unsqueeze(-1) * at_zero

    def rows(
        self, ir_in: Irrep, ir_out: Irrep, offsets: Tensor, learned: RadialFunctions | None = None
    ) -> Tensor:
        """(n, d_out, d_in, P) kernel functions at `offsets` (P, 3), before orthonormalisation."""
        radial = (learned or self.radial)(offsets.norm(dim=-1))
        arrays = [torch.einsum("mnp,pr->rmnp", a, radial) for a in self.angular(ir_in, ir_out, offsets)]
        if self.has_linear(ir_in, ir_out):
            arrays.append(self.linear(ir_out, offsets).unsqueeze(0))
        empty = offsets.new_zeros(0, ir_out.dim, ir_in.dim, len(offsets))
        return torch.cat([empty, *arrays])


class Piece(NamedTuple):
    """Sizes of the kernel between one entry of each irreps, in plain numbers."""

    key: str
    functions: int
    linear: bool
    mul_out: int
    mul_in: int
    dim_out: int
    dim_in: int


class SteerableKernel(nn.Module):
    """Learned weights x kernel basis -> (dim_out, dim_in, k³), for channels of `irreps_in` and `irreps_out`.

    Without an MLP in the radial basis the basis is orthonormal per pair of irreps and precomputed; with one, angular
    parts are precomputed and the radial net is evaluated each time.
    """

    def __init__(
        self,
        irreps_in: Irreps,
        irreps_out: Irreps,
        kernel_size: int,
        functions: PSpaceFunctions,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out, self.functions = irreps_in, irreps_out, functions
        self.kernel_size = kernel_size
        self.offsets = kernel_offsets(kernel_size, spacing)
        self.pairs = [(i, o) for o in range(len(irreps_out)) for i in range(len(irreps_in))]
        self.radial = RadialFunctions(functions.radial) if functions.radial.mlp else None
        self.transforms: dict[str, Tensor] = {}
        self.constants = Constants(**self._precompute())
        self.pieces = [self._piece(i, o) for i, o in self.pairs]
        self.counts = [piece.functions for piece in self.pieces]
        self.sizes = [piece.functions * piece.mul_out * piece.mul_in for piece in self.pieces]
        self.columns = len(irreps_in)
        self.weight = nn.Parameter(torch.empty(sum(self.sizes)))
        self.reset_parameters()

    def reaches(self, o: int) -> bool:
        """Whether any input entry is carried to output entry `o`."""
        return any(count for count, (_, p) in zip(self.counts, self.pairs, strict=True) if p == o)

    def _key(self, i: int, o: int) -> str:
        a, b = self.irreps_in[i].ir, self.irreps_out[o].ir
        return f"in_{a}_out_{b}"

    def _precompute(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for i, o in self.pairs:
            key = self._key(i, o)
            if key in tensors:
                continue
            ir_in, ir_out = self.irreps_in[i].ir, self.irreps_out[o].ir
            if self.radial is None:
                rows = self.functions.rows(ir_in, ir_out, self.offsets).flatten(1)
                self.transforms[key] = orthonormalise(rows)
                tensors[key] = self.transforms[key] @ rows
            else:
                tensors[key] = self._angular_rows(ir_in, ir_out)
        if self.radial is not None:
            tensors["lengths"] = self.offsets.norm(dim=-1)
        return tensors

    def _angular_rows(self, ir_in: Irrep, ir_out: Irrep) -> Tensor:
        arrays = self.functions.angular(ir_in, ir_out, self.offsets)
        if self.functions.has_linear(ir_in, ir_out):
            arrays.append(self.functions.linear(ir_out, self.offsets))
        empty = self.offsets.new_zeros(0, ir_out.dim * ir_in.dim, len(self.offsets))
        return torch.cat([empty, *(a.flatten(0, 1).unsqueeze(0) for a in arrays)])

    def _piece(self, i: int, o: int) -> Piece:
        (mul_in, ir_in), (mul_out, ir_out) = self.irreps_in[i], self.irreps_out[o]
        linear = self.radial is not None and self.functions.has_linear(ir_in, ir_out)
        count = len(self.constants.originals[self._key(i, o)])
        if self.radial is not None:
            count = (count - linear) * self.radial.n_out + linear
        return Piece(self._key(i, o), count, linear, mul_out, mul_in, ir_out.dim, ir_in.dim)

    def _basis(self, piece: Piece, radial: Tensor | None) -> Tensor:
        """(n, d_out * d_in * k³) kernel functions of one pair."""
        fixed = getattr(self.constants, piece.key)
        if radial is None:
            return fixed
        shaped, plain = (fixed[:-1], fixed[-1:]) if piece.linear else (fixed, fixed[:0])
        return torch.cat([torch.einsum("fap,pr->frap", shaped, radial).flatten(0, 1), plain]).flatten(1)

    def _radial_values(self) -> Tensor | None:
        return None if self.radial is None else self.radial(self.constants.lengths)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights so that unit-variance, uncorrelated input gives output of unit variance."""
        radial = self._radial_values()
        energy = [self._basis(piece, radial).square().sum().item() for piece in self.pieces]
        start = 0
        for (_, o), size in zip(self.pairs, self.sizes, strict=True):
            fan = sum(
                e * self.irreps_in[i].mul for (i, p), e in zip(self.pairs, energy, strict=True) if p == o
            )
            deviation = sqrt(self.irreps_out[o].ir.dim / fan) if fan > 0 else 0.0
            self.weight[start : start + size].normal_(0.0, deviation)
            start += size

    def _assemble(self, bases: Sequence[Tensor], weight: Tensor) -> Tensor:
        """(dim_out, dim_in, P) from one (n, d_out * d_in * P) basis per pair."""
        blocks = []
        for piece, basis, part in zip(self.pieces, bases, weight.split(self.sizes), strict=True):
            values = part.view(piece.mul_out * piece.mul_in, piece.functions) @ basis
            values = values.view(piece.mul_out, piece.mul_in, piece.dim_out, piece.dim_in, -1).transpose(1, 2)
            blocks.append(values.reshape(piece.mul_out * piece.dim_out, piece.mul_in * piece.dim_in, -1))
        rows = [
            torch.cat(blocks[start : start + self.columns], 1)
            for start in range(0, len(blocks), self.columns)
        ]
        return torch.cat(rows)

    def forward(self) -> Tensor:
        """(dim_out, dim_in, k³) kernel in the precision of the weights, at least float32."""
        radial = self._radial_values()
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        bases = [self._basis(piece, radial).to(dtype) for piece in self.pieces]
        return self._assemble(bases, self.weight.to(dtype))

    @torch.no_grad()
    def at(self, offsets: Tensor) -> Tensor:
        """(dim_out, dim_in, P) float64 kernel function at any `offsets` (P, 3), in half kernel widths."""
        bases = []
        for i, o in self.pairs:
            ir_in, ir_out = self.irreps_in[i].ir, self.irreps_out[o].ir
            rows = self.functions.rows(ir_in, ir_out, offsets.double(), self.radial).flatten(1)
            if self.radial is None:
                rows = self.transforms[self._key(i, o)] @ rows
            bases.append(rows)
        return self._assemble(bases, self.weight.double())
