"""Kernels that factorise over p- and q-space, applied one space after the other: `PQTensorProduct` and `QSpace`.

K(p, q_out, q_in) = sum over (o, i, a) of phi_o(|q_out|) phi_i(|q_in|) Y_a(dq) K_oia(p), where a runs over the
components of the harmonics of dq. Contracting q first mixes the Q_in samples into n_i·A channels per output sample by
one matrix product and then convolves each with its own small kernel; p first does the reverse; 'dense' builds the
whole kernel.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmri_monai.equivariant.grid import kernel_offsets
from dmri_monai.equivariant.kernels import _Elementary
from dmri_monai.equivariant.paths import (
    Path,
    QRadials,
    Setting,
    coupling_constants,
    filter_paths,
    harmonic_scale,
    linear_map,
    linear_pairs,
    p_window,
    shape_of,
)
from dmri_monai.equivariant.qgeometry import direction_functions
from dmri_monai.equivariant.radial import RadialFunctions
from dmri_monai.equivariant.representation import Constants, harmonic_couplings, spherical_harmonics

if TYPE_CHECKING:
    from e3nn.o3 import Irrep, Irreps

__all__ = ["ConvOptions", "FactorisedKernel"]


class ConvOptions(NamedTuple):
    """Arguments handed to conv3d, and the order of contraction ('auto' takes the cheapest)."""

    stride: int
    padding: int
    dilation: int
    strategy: str


class _PairPaths(NamedTuple):
    """Paths of one pair of irreps that share lq: where their constants and weights lie."""

    key: str
    n_paths: int
    mul_out: int
    mul_in: int
    dim_out: int
    dim_in: int


class FactorisedKernel(nn.Module):
    """Operator of a factorising kernel. x (N, Q_in, dim_in, X, Y, Z) -> (N, Q_out, dim_out, X', Y', Z').

    `weight` holds, per pair of irreps (out-major) and lq ascending, an array (path, p-radial, q_out-radial,
    q_in-radial, channel out, channel in); `linear` the plain map used where an offset has no direction.
    """

    def __init__(self, kernel: _Elementary, irreps_in: Irreps, irreps_out: Irreps, setting: Setting) -> None:
        super().__init__()
        self.setting, self.window = setting, p_window(kernel)
        self.masked, self.unit = kernel.zero_offset == "linear", kernel.unit_q_difference
        self.q_radials = QRadials(kernel, setting)
        p_radial = kernel.p_radial.resolved((setting.kernel_size + 1) // 2)
        self.p_radial = None if self.window else RadialFunctions(p_radial)
        self.n_p = 1 if self.p_radial is None else self.p_radial.n_out
        self.shape_in, self.shape_out = shape_of(irreps_in), shape_of(irreps_out)
        self.dim_in, self.dim_out = irreps_in.dim, irreps_out.dim
        self.paths = {
            (o, i): filter_paths(kernel, irreps_in[i].ir, irreps_out[o].ir, setting)
            for o in range(len(irreps_out))
            for i in range(len(irreps_in))
        }
        self.q_degrees = sorted({path.lq for paths in self.paths.values() for path in paths})
        self.n_angular = sum(2 * lq + 1 for lq in self.q_degrees)
        self.scales = [harmonic_scale(kernel, lq) for lq in self.q_degrees]
        self._init_constants(kernel, irreps_in, irreps_out)
        self._init_weights(irreps_in, irreps_out)

    def _init_constants(self, kernel: _Elementary, irreps_in: Irreps, irreps_out: Irreps) -> None:
        offsets = kernel_offsets(self.setting.kernel_size)
        at_zero = (offsets.norm(dim=-1) == 0).double()
        tensors = {"lengths": offsets.norm(dim=-1), "at_zero": at_zero}
        l_max = max((p.lp for paths in self.paths.values() for p in paths), default=0)
        harmonics = spherical_harmonics(offsets, l_max)
        shown = 1 - at_zero if self.masked and not self.window else torch.ones_like(at_zero)
        self.pieces: dict[tuple[int, int], list[_PairPaths | None]] = {}
        for (o, i), paths in self.paths.items():
            (mul_out, ir_out), (mul_in, ir_in) = irreps_out[o], irreps_in[i]
            pieces: list[_PairPaths | None] = []
            for lq in self.q_degrees:
                mine = [path for path in paths if path.lq == lq]
                key = f"out_{ir_out}_in_{ir_in}_lq{lq}"
                if mine:
                    tensors[key] = self._angular(kernel, ir_in, ir_out, mine, harmonics) * shown
                pieces.append(
                    _PairPaths(key, len(mine), mul_out, mul_in, ir_out.dim, ir_in.dim) if mine else None
                )
            self.pieces[o, i] = pieces
        for index, coupling in enumerate(harmonic_couplings(max(self.q_degrees, default=0))):
            tensors[f"climb_{index}"] = coupling
        self.constants = Constants(**tensors)

    @staticmethod
    def _angular(
        kernel: _Elementary, ir_in: Irrep, ir_out: Irrep, paths: list[Path], harmonics: list[Tensor]
    ) -> Tensor:
        """(paths, d_out, d_in, 2lq+1, P): both couplings times the harmonics of the voxel offsets."""
        arrays = []
        for path in paths:
            constants = coupling_constants(ir_in, ir_out, path) * harmonic_scale(kernel, path.lp)
            arrays.append(torch.einsum("mnab,pb->mnap", constants, harmonics[path.lp]))
        return torch.stack(arrays)

    def _init_weights(self, irreps_in: Irreps, irreps_out: Irreps) -> None:
        per_path = self.n_p * self.q_radials.n_out * self.q_radials.n_in
        self.sizes = [
            piece.n_paths * per_path * piece.mul_out * piece.mul_in
            for pieces in self.pieces.values()
            for piece in pieces
            if piece
        ]
        self.weight = nn.Parameter(torch.empty(sum(self.sizes)))
        self.linear_pairs = linear_pairs(irreps_in, irreps_out, self.setting) if self.masked else []
        count = sum(irreps_in[i].mul * irreps_out[o].mul for i, o in self.linear_pairs)
        self.linear = nn.Parameter(torch.empty(count)) if self.masked else None
        self.reset_parameters()

    def reaches(self, o: int) -> bool:
        """Whether any input irrep is carried to output entry `o`."""
        return any(self.paths[o, i] for i in range(len(self.shape_in))) or any(
            p == o for _, p in self.linear_pairs
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights for output of about unit variance from input of unit variance that is smooth over q."""
        energy = self._p_values().square().sum().item() * self.q_radials.energy(self.constants.lengths)
        parts = list(self.weight.split(self.sizes))
        for o in range(len(self.shape_out)):
            fan = sum(len(self.paths[o, i]) * m for i, (m, _) in enumerate(self.shape_in)) + sum(
                self.shape_in[i][0] for i, p in self.linear_pairs if p == o
            )
            for i in range(len(self.shape_in)):
                for piece in self.pieces[o, i]:
                    if piece:
                        parts.pop(0).normal_(0.0, 1 / sqrt(fan * energy))
        if self.linear is not None:
            fan_in = max(1, sum(m for m, _ in self.shape_in))
            self.linear.normal_(0.0, 1 / sqrt(2 * fan_in))

    def _p_values(self) -> Tensor:
        """(P, n_p) radial functions of the voxel offsets."""
        lengths = self.constants.lengths
        return lengths.new_ones(len(lengths), 1) if self.p_radial is None else self.p_radial(lengths)

    def _p_kernels(self, dtype: torch.dtype) -> Tensor:
        """(n_o, n_i, dim_out, A, dim_in, P): the kernels K_oia(p)."""
        radial = self._p_values().to(dtype)
        parts = list(self.weight.to(dtype).split(self.sizes))
        rows = []
        for o, (m_out, d_out) in enumerate(self.shape_out):
            blocks = []
            for i, (m_in, d_in) in enumerate(self.shape_in):
                per_lq = []
                for lq, piece in zip(self.q_degrees, self.pieces[o, i], strict=True):
                    if piece is None:
                        shape = (
                            self.q_radials.n_out,
                            self.q_radials.n_in,
                            m_out * d_out,
                            2 * lq + 1,
                            m_in * d_in,
                        )
                        per_lq.append(radial.new_zeros(*shape, len(radial)))
                    else:
                        per_lq.append(self._block(piece, parts.pop(0), radial))
                blocks.append(torch.cat(per_lq, dim=3))
            rows.append(torch.cat(blocks, dim=4))
        return torch.cat(rows, dim=2)

    def _block(self, piece: _PairPaths, weight: Tensor, radial: Tensor) -> Tensor:
        """(n_o, n_i, mul_out·d_out, 2lq+1, mul_in·d_in, P) of one pair and lq."""
        angular = getattr(self.constants, piece.key).to(radial.dtype)
        basis = torch.einsum("cmnap,pr->crmnap", angular, radial).flatten(0, 1).flatten(1)
        n_o, n_i = self.q_radials.n_out, self.q_radials.n_in
        mixed = weight.view(piece.n_paths * self.n_p, -1).T @ basis
        sizes = (n_o, n_i, piece.mul_out, piece.mul_in, piece.dim_out, piece.dim_in, -1, len(radial))
        return mixed.view(sizes).permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(2, 3).flatten(4, 5)

    def _q_functions(
        self, q_out: Tensor | None, q_in: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """phi_o (..., Q_out, n_o), phi_i (..., Q_in, n_i), Y (..., Q_out, Q_in, A) and where dq = 0."""
        like = self.constants.lengths
        outer, inner = self.q_radials(q_out, q_in, like)
        if q_out is None and q_in is None:
            ones = like.new_ones(1, 1)
            return outer, inner, ones.unsqueeze(-1), ones if self.window else torch.zeros_like(ones)
        l_max = max(self.q_degrees, default=0)
        couplings = [getattr(self.constants, f"climb_{index}") for index in range(l_max)]
        harmonics, same = direction_functions(
            q_out,
            q_in,
            couplings,
            l_max=l_max,
            unit=self.unit,
            antipodal=self.setting.antipodal,
            mask_zero=self.masked,
        )
        empty = same.new_zeros(*same.shape, 0)
        chosen = [harmonics[lq] * scale for lq, scale in zip(self.q_degrees, self.scales, strict=True)]
        return outer, inner, torch.cat([empty, *chosen], dim=-1), same

    def _linear(self, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """The plain map away from and at the centre of the window, (dim_out, dim_in, P) each.

        It stands where p = 0 or dq = 0: everywhere for dq = 0, and at p = 0 for every pair of samples.
        """
        if self.linear is None:
            return None
        matrix = linear_map(
            self.linear.to(dtype), self.shape_in, self.shape_out, self.linear_pairs
        ).unsqueeze(-1)
        at_zero = self.constants.at_zero.to(dtype)
        if self.window:
            return matrix * torch.ones_like(at_zero), matrix * torch.zeros_like(at_zero)
        return matrix * (1 - at_zero), matrix * at_zero

    def _q_first_factors(
        self, q_out: Tensor | None, q_in: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Matrix (..., Q_out, C, Q_in), kernels (..., Q_out, dim_out, C, dim_in, P), and the map at p = 0."""
        outer, inner, angular, same = self._q_functions(q_out, q_in)
        kernels = self._p_kernels(outer.dtype)
        matrix = torch.einsum("...qsa,...si->...qias", angular, inner).flatten(-3, -2)
        weights = torch.einsum("...qo,oidavp->...qdiavp", outer, kernels).flatten(-4, -3)
        linear = self._linear(outer.dtype)
        if linear is None:
            return matrix, weights, None
        matrix = torch.cat([matrix, same.unsqueeze(-2)], dim=-2)
        away = linear[0].unsqueeze(1).expand(*weights.shape[:-4], -1, -1, -1, -1)
        return matrix, torch.cat([weights, away], dim=-3), linear[1]

    def dense(self, q_out: Tensor | None, q_in: Tensor | None) -> Tensor:
        """(..., dim_out, Q_out, dim_in, Q_in, P) whole kernel."""
        matrix, weights, at_zero = self._q_first_factors(q_out, q_in)
        full = torch.einsum("...qcs,...qdcvp->...dqvsp", matrix, weights)
        return full if at_zero is None else full + at_zero.unsqueeze(1).unsqueeze(3)

    def forward(self, x: Tensor, q_out: Tensor | None, q_in: Tensor | None, options: ConvOptions) -> Tensor:
        strategy = self._choose(q_out, q_in, x) if options.strategy == "auto" else options.strategy
        apply = {"q_first": self._apply_q_first, "p_first": self._apply_p_first, "dense": self._apply_dense}
        return apply[strategy](x, q_out, q_in, options)

    def _choose(self, q_out: Tensor | None, q_in: Tensor | None, x: Tensor) -> str:
        """The order with the fewest multiplications per voxel."""
        n_out, n_in = (1 if q is None else q.shape[-2] for q in (q_out, q_in))
        taps, both = self.setting.kernel_size**3, self.dim_in * self.dim_out
        c_in = self.q_radials.n_in * self.n_angular + self.masked
        c_out = self.q_radials.n_out * self.n_angular + self.masked
        cost = {
            "q_first": n_out * c_in * self.dim_in * (n_in + self.dim_out * taps),
            "p_first": n_in * c_out * self.dim_out * (n_out + self.dim_in * taps),
            "dense": n_out * n_in * both * taps * (1.0 + c_in / x[0, 0, 0].numel()),
        }
        return min(cost, key=cost.__getitem__)

    def _apply_q_first(
        self, x: Tensor, q_out: Tensor | None, q_in: Tensor | None, options: ConvOptions
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            matrix, weights, at_zero = self._q_first_factors(q_out, q_in)
        mixed = matrix.flatten(-3, -2).to(x.dtype) @ x.flatten(2)
        n_out = matrix.shape[-3]
        mixed = mixed.view(len(x), n_out, -1, *x.shape[3:])
        y = grouped_conv(mixed, weights.flatten(-3, -2), options)
        return y if at_zero is None else y + self._plain(x.sum(1), at_zero, options).unsqueeze(1)

    def _apply_p_first(
        self, x: Tensor, q_out: Tensor | None, q_in: Tensor | None, options: ConvOptions
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            outer, inner, angular, same = self._q_functions(q_out, q_in)
            kernels = self._p_kernels(outer.dtype)
            weights = torch.einsum("...si,oidavp->...soadvp", inner, kernels).flatten(-5, -4)
            matrix = torch.einsum("...qo,...qsa->...qsoa", outer, angular).flatten(-2)
            linear = self._linear(outer.dtype)
            if linear is not None:
                away = linear[0].expand(*weights.shape[:-4], 1, -1, -1, -1)
                weights, matrix = (
                    torch.cat([weights, away], dim=-4),
                    torch.cat([matrix, same.unsqueeze(-1)], dim=-1),
                )
        filtered = grouped_conv(x, weights.flatten(-4, -3), options)
        sizes = filtered.shape[3:]
        filtered = filtered.reshape(len(x), matrix.shape[-1] * x.shape[1], -1)
        y = (matrix.flatten(-2).to(filtered.dtype) @ filtered).view(
            len(x), matrix.shape[-3], self.dim_out, *sizes
        )
        return y if linear is None else y + self._plain(x.sum(1), linear[1], options).unsqueeze(1)

    def _apply_dense(
        self, x: Tensor, q_out: Tensor | None, q_in: Tensor | None, options: ConvOptions
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            full = self.dense(q_out, q_in)
        return dense_conv(x, full, options)

    def _plain(self, total: Tensor, weight: Tensor, options: ConvOptions) -> Tensor:
        """The map at p = 0 of the sum over samples: the same for every q_out."""
        return dense_conv(total.unsqueeze(1), weight.unsqueeze(1).unsqueeze(3), options).squeeze(1)


def grouped_conv(x: Tensor, weight: Tensor, options: ConvOptions) -> Tensor:
    """Each sample with its own kernel: x (N, Q, C, X, Y, Z), weight ([N,] Q, D, C, P) -> (N, Q, D, X', Y', Z')."""
    k = round(weight.shape[-1] ** (1 / 3))
    groups = weight.shape[:-3].numel()
    flat = x.flatten(1, 2) if weight.ndim == 4 else x.flatten(0, 2).unsqueeze(0)
    kernel = weight.flatten(0, -3).unflatten(-1, (k, k, k)).to(x.dtype)
    y = functional.conv3d(flat, kernel, None, options.stride, options.padding, options.dilation, groups)
    return y.reshape(len(x), x.shape[1], weight.shape[-3], *y.shape[2:])


def dense_conv(x: Tensor, full: Tensor, options: ConvOptions) -> Tensor:
    """x (N, Q_in, dim_in, X, Y, Z) through a whole kernel ([N,] dim_out, Q_out, dim_in, Q_in, P)."""
    if full.ndim == 6:
        return torch.cat([dense_conv(a.unsqueeze(0), b, options) for a, b in zip(x, full, strict=True)])
    d_out, n_out, d_in, n_in, taps = full.shape
    k = round(taps ** (1 / 3))
    kernel = full.permute(1, 0, 3, 2, 4).reshape(n_out * d_out, n_in * d_in, k, k, k).to(x.dtype)
    y = functional.conv3d(x.flatten(1, 2), kernel, None, options.stride, options.padding, options.dilation)
    return y.unflatten(1, (n_out, d_out))
