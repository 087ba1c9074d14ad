"""Kernels that factorise over p- and q-space, applied one space after the other: `PQTensorProduct` and `QSpace`.

K(p, q_out, q_in) = sum over (o, i, a) of phi_o(|q_out|) phi_i(|q_in|) Y_a(dq) K_oia(p), where a runs over the
components of the harmonics of dq. Four orders of contraction give the same result:
- q_first: one matrix product mixes the Q_in samples into n_i·A channels per q_out, then a small kernel for each q_out;
- p_first: the reverse;
- p_basis: filter the input by the few functions of p that span K(p), then one matrix product over everything else;
- dense: build the whole kernel.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.contraction import ConvOptions, Operator, dense_conv, grouped_conv, responses
from dmri_monai.equivariant.grid import kernel_offsets
from dmri_monai.equivariant.kernels import _Elementary
from dmri_monai.equivariant.paths import (
    PairPaths,
    PFunctions,
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
    from e3nn.o3 import Irreps

__all__ = ["FactorisedKernel"]

GROUPED_CONV_COST = (
    4.0  # a multiplication in a grouped convolution against one in a dense one, measured on a CPU
)


class FactorisedKernel(Operator):
    """Operator of a factorising kernel. x (N, Q_in, dim_in, X, Y, Z) -> (N, Q_out, dim_out, X', Y', Z').

    `weight` holds, per pair of irreps (out-major) and path, an array (p-radial, q_out-radial, q_in-radial, channel out,
    channel in); `linear` the plain map used where an offset has no direction.
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
        self._init_paths(kernel, irreps_in, irreps_out)
        per_path = self.n_p * self.q_radials.n_out * self.q_radials.n_in
        self.sizes = [per_path * pair.mul_out * pair.mul_in for pair in self.pairs for _ in pair.paths]
        self.weight = nn.Parameter(torch.empty(sum(self.sizes)))
        self.linear_pairs = linear_pairs(irreps_in, irreps_out, setting) if self.masked else []
        count = sum(irreps_in[i].mul * irreps_out[o].mul for i, o in self.linear_pairs)
        self.linear = nn.Parameter(torch.empty(count)) if self.masked else None
        self.reset_parameters()

    def _init_paths(self, kernel: _Elementary, irreps_in: Irreps, irreps_out: Irreps) -> None:
        tensors = {"offsets": kernel_offsets(self.setting.kernel_size)}
        self.pairs: list[PairPaths] = []
        for o, (mul_out, ir_out) in enumerate(irreps_out):
            for i, (mul_in, ir_in) in enumerate(irreps_in):
                paths = tuple(filter_paths(kernel, ir_in, ir_out, self.setting))
                keys = tuple(f"out_{ir_out}_in_{ir_in}_l{p.degree}_q{p.lq}_p{p.lp}" for p in paths)
                for key, path in zip(keys, paths, strict=True):
                    scale = harmonic_scale(kernel, path.lp) * harmonic_scale(kernel, path.lq)
                    tensors[key] = coupling_constants(ir_in, ir_out, path) * scale
                self.pairs.append(PairPaths(o, i, paths, keys, mul_out, mul_in, ir_out.dim, ir_in.dim))
        paths_used = [path for pair in self.pairs for path in pair.paths]
        self.q_degrees = sorted({path.lq for path in paths_used})
        self.p_degrees = sorted({path.lp for path in paths_used})
        self.n_angular = sum(2 * lq + 1 for lq in self.q_degrees)
        self.l_max = max([*self.q_degrees, *self.p_degrees], default=0)
        for index, coupling in enumerate(harmonic_couplings(self.l_max)):
            tensors[f"climb_{index}"] = coupling
        self.constants = Constants(**tensors)

    def reaches(self, o: int) -> bool:
        """Whether any input irrep is carried to output entry `o`."""
        return any(pair.paths for pair in self.pairs if pair.o == o) or any(
            p == o for _, p in self.linear_pairs
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights for output of about unit variance from input of unit variance that is smooth over q."""
        energy = self._p_functions(None).radial.square().sum().item() * self.q_radials.energy(
            self.constants.offsets
        )
        parts = list(self.weight.split(self.sizes))
        for pair in self.pairs:
            row = [p for p in self.pairs if p.o == pair.o]
            fan = sum(len(p.paths) * p.mul_in for p in row) + sum(
                self.shape_in[i][0] for i, o in self.linear_pairs if o == pair.o
            )
            for _ in pair.paths:
                parts.pop(0).normal_(0.0, 1 / sqrt(fan * energy))
        if self.linear is not None:
            self.linear.normal_(0.0, 1 / sqrt(2 * max(1, sum(m for m, _ in self.shape_in))))

    def _couplings(self) -> list[Tensor]:
        return [getattr(self.constants, f"climb_{index}") for index in range(self.l_max)]

    def _p_functions(self, offsets: Tensor | None) -> PFunctions:
        """Functions of the voxel offsets (P, 3); None is the kernel's own grid."""
        offsets = self.constants.offsets if offsets is None else offsets
        lengths = offsets.norm(dim=-1)
        radial = lengths.new_ones(len(lengths), 1) if self.p_radial is None else self.p_radial(lengths)
        at_zero = (lengths == 0).to(lengths.dtype)
        harmonics = spherical_harmonics(offsets, self.l_max, self._couplings())
        if self.masked and not self.window:
            harmonics = [h * (1 - at_zero).unsqueeze(-1) for h in harmonics]
        return PFunctions(radial, harmonics, at_zero)

    def _p_kernels(self, functions: PFunctions) -> Tensor:
        """(n_o, n_i, dim_out, A, dim_in, P): the kernels K_oia(p)."""
        parts = list(self.weight.to(functions.radial.dtype).split(self.sizes))
        columns = len(self.shape_in)
        blocks = [
            self._pair_kernel(pair, [parts.pop(0) for _ in pair.paths], functions) for pair in self.pairs
        ]
        rows = [torch.cat(blocks[start : start + columns], dim=4) for start in range(0, len(blocks), columns)]
        return torch.cat(rows, dim=2)

    def _pair_kernel(self, pair: PairPaths, weights: list[Tensor], functions: PFunctions) -> Tensor:
        """(n_o, n_i, mul_out·d_out, A, mul_in·d_in, P) of one pair of irreps."""
        n_o, n_i, taps = self.q_radials.n_out, self.q_radials.n_in, len(functions.radial)
        per_lq = []
        for lq in self.q_degrees:
            mine = [
                (path, key, w)
                for path, key, w in zip(pair.paths, pair.keys, weights, strict=True)
                if path.lq == lq
            ]
            if not mine:
                sizes = (n_o, n_i, pair.mul_out * pair.dim_out, 2 * lq + 1, pair.mul_in * pair.dim_in, taps)
                per_lq.append(functions.radial.new_zeros(sizes))
                continue
            basis = torch.cat([self._p_basis(path.lp, key, functions) for path, key, _ in mine])
            mixed = torch.cat([w.view(self.n_p, -1) for *_, w in mine]).T @ basis.flatten(1)
            mixed = mixed.view(n_o, n_i, pair.mul_out, pair.mul_in, pair.dim_out, pair.dim_in, -1, taps)
            per_lq.append(mixed.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(2, 3).flatten(4, 5))
        empty = functions.radial.new_zeros(
            n_o, n_i, pair.mul_out * pair.dim_out, 0, pair.mul_in * pair.dim_in, taps
        )
        return torch.cat([empty, *per_lq], dim=3)

    def _p_basis(self, lp: int, key: str, functions: PFunctions) -> Tensor:
        """(n_p, d_out, d_in, 2lq+1, P) of one path."""
        constants = getattr(self.constants, key).to(functions.radial.dtype)
        angular = torch.einsum("mnab,pb->mnap", constants, functions.harmonics[lp])
        return torch.einsum("mnap,pr->rmnap", angular, functions.radial)

    def _q_functions(
        self, q_out: Tensor | None, q_in: Tensor | None
    ) -> tuple[Tensor, Tensor, dict[int, Tensor], Tensor]:
        """phi_o (..., Q_out, n_o), phi_i (..., Q_in, n_i), {lq: Y (..., Q_out, Q_in, 2lq+1)} and where dq = 0."""
        like = self.constants.offsets
        outer, inner = self.q_radials(q_out, q_in, like)
        if q_out is None and q_in is None:
            ones = like.new_ones(1, 1)
            return outer, inner, {0: ones.unsqueeze(-1)}, torch.zeros_like(ones)
        harmonics, same = direction_functions(
            q_out,
            q_in,
            self._couplings(),
            l_max=max(self.q_degrees, default=0),
            unit=self.unit,
            antipodal=self.setting.antipodal,
            mask_zero=self.masked,
        )
        return outer, inner, {lq: harmonics[lq] for lq in self.q_degrees}, same

    def _linear(self, at_zero: Tensor) -> tuple[Tensor, Tensor] | None:
        """The plain map (dim_out, dim_in), and the taps (P,) where it stands when dq = 0 only.

        It stands where p = 0 or dq = 0: everywhere for dq = 0, and at p = 0 for every pair of samples.
        """
        if self.linear is None:
            return None
        matrix = linear_map(self.linear.to(at_zero.dtype), self.shape_in, self.shape_out, self.linear_pairs)
        return matrix, torch.ones_like(at_zero) if self.window else 1 - at_zero

    def _angular(self, harmonics: dict[int, Tensor], same: Tensor) -> Tensor:
        """(..., Q_out, Q_in, A)."""
        return torch.cat([same.new_zeros(*same.shape, 0), *(harmonics[lq] for lq in self.q_degrees)], dim=-1)

    def _q_first_factors(
        self, q_out: Tensor | None, q_in: Tensor | None, offsets: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Matrix (..., Q_out, C, Q_in), kernels (..., Q_out, dim_out, C, dim_in, P), and the map at p = 0."""
        outer, inner, harmonics, same = self._q_functions(q_out, q_in)
        functions = self._p_functions(offsets)
        kernels = self._p_kernels(functions)
        matrix = torch.einsum("...qsa,...si->...qias", self._angular(harmonics, same), inner).flatten(-3, -2)
        weights = torch.einsum("...qo,oidavp->...qdiavp", outer, kernels).flatten(-4, -3)
        linear = self._linear(functions.at_zero)
        if linear is None:
            return matrix, weights, None
        matrix = torch.cat([matrix, same.unsqueeze(-2)], dim=-2)
        away = (linear[0].unsqueeze(-1) * linear[1]).unsqueeze(1).expand(*weights.shape[:-4], -1, -1, -1, -1)
        centre = None if self.window else linear[0].unsqueeze(-1) * functions.at_zero
        return matrix, torch.cat([weights, away], dim=-3), centre

    def dense(self, q_out: Tensor | None, q_in: Tensor | None, offsets: Tensor | None = None) -> Tensor:
        """(..., dim_out, Q_out, dim_in, Q_in, P) whole kernel, at the voxels of the kernel or at any `offsets`."""
        matrix, weights, centre = self._q_first_factors(q_out, q_in, offsets)
        full = torch.einsum("...qcs,...qdcvp->...dqvsp", matrix, weights)
        return full if centre is None else full + centre.unsqueeze(1).unsqueeze(3)

    def forward(self, x: Tensor, q_out: Tensor | None, q_in: Tensor | None, options: ConvOptions) -> Tensor:
        strategy = self._choose(q_out, q_in, x) if options.strategy == "auto" else options.strategy
        apply = {
            "q_first": self._apply_q_first,
            "p_first": self._apply_p_first,
            "p_basis": self._apply_p_basis,
            "dense": self._apply_dense,
        }
        return apply[strategy](x, q_out, q_in, options)

    def _choose(self, q_out: Tensor | None, q_in: Tensor | None, x: Tensor) -> str:
        """The order with the fewest multiplications per voxel."""
        n_out, n_in = (1 if q is None else q.shape[-2] for q in (q_out, q_in))
        taps = self.setting.kernel_size**3
        both = taps * self.dim_in * self.dim_out
        c_in = self.q_radials.n_in * self.n_angular + self.masked
        c_out = self.q_radials.n_out * self.n_angular + self.masked
        products = sum(
            pair.mul_out * pair.dim_out * pair.mul_in * pair.dim_in * self._columns(pair, lp)
            for pair in self.pairs
            for lp in self._p_degrees_of(pair)
        )
        n_basis = self.n_p * sum(2 * lp + 1 for lp in self.p_degrees)
        cost = {
            "q_first": n_out * c_in * (n_in * self.dim_in + GROUPED_CONV_COST * both * (n_out > 1)),
            "p_first": n_in * c_out * (n_out * self.dim_out + GROUPED_CONV_COST * both * (n_in > 1)),
            "p_basis": n_in * self.dim_in * n_basis * taps * GROUPED_CONV_COST + n_out * n_in * products,
            "dense": n_out * n_in * both * (1.0 + c_in / x[0, 0, 0].numel()),
        }
        if n_out == 1:
            cost["q_first"] += c_in * both
        if n_in == 1:
            cost["p_first"] += c_out * both
        return min(cost, key=cost.__getitem__)

    def _apply_q_first(
        self, x: Tensor, q_out: Tensor | None, q_in: Tensor | None, options: ConvOptions
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            matrix, weights, centre = self._q_first_factors(q_out, q_in)
        mixed = matrix.flatten(-3, -2).to(x.dtype) @ x.flatten(2)
        mixed = mixed.view(len(x), matrix.shape[-3], -1, *x.shape[3:])
        y = grouped_conv(mixed, weights.flatten(-3, -2), options)
        return y if centre is None else y + _plain(x.sum(1), centre, options)

    def _apply_p_first(
        self, x: Tensor, q_out: Tensor | None, q_in: Tensor | None, options: ConvOptions
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            outer, inner, harmonics, same = self._q_functions(q_out, q_in)
            functions = self._p_functions(None)
            weights = torch.einsum("...si,oidavp->...soadvp", inner, self._p_kernels(functions)).flatten(
                -5, -4
            )
            matrix = torch.einsum("...qo,...qsa->...qsoa", outer, self._angular(harmonics, same)).flatten(-2)
            linear, centre = self._linear(functions.at_zero), None
            if linear is not None:
                away = (linear[0].unsqueeze(-1) * linear[1]).expand(*weights.shape[:-4], 1, -1, -1, -1)
                weights, matrix = (
                    torch.cat([weights, away], dim=-4),
                    torch.cat([matrix, same.unsqueeze(-1)], dim=-1),
                )
                centre = None if self.window else linear[0].unsqueeze(-1) * functions.at_zero
        filtered = grouped_conv(x, weights.flatten(-4, -3), options)
        sizes = filtered.shape[3:]
        filtered = filtered.reshape(len(x), matrix.shape[-1] * x.shape[1], -1)
        y = (matrix.flatten(-2).to(filtered.dtype) @ filtered).view(
            len(x), matrix.shape[-3], self.dim_out, *sizes
        )
        return y if centre is None else y + _plain(x.sum(1), centre, options)

    def _apply_dense(
        self, x: Tensor, q_out: Tensor | None, q_in: Tensor | None, options: ConvOptions
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            full = self.dense(q_out, q_in)
        return dense_conv(x, full, options)

    def _p_degrees_of(self, pair: PairPaths) -> list[int]:
        """Degrees of p-functions between a pair; the plain map counts among those of degree 0."""
        degrees = {path.lp for path in pair.paths}
        return sorted(degrees | ({0} if (pair.i, pair.o) in self.linear_pairs else set()))

    def _columns(self, pair: PairPaths, lp: int) -> int:
        linear = lp == 0 and (pair.i, pair.o) in self.linear_pairs
        return self.n_p * (2 * lp + 1) * any(path.lp == lp for path in pair.paths) + linear * (
            2 - self.window
        )

    def _apply_p_basis(
        self, x: Tensor, q_out: Tensor | None, q_in: Tensor | None, options: ConvOptions
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            outer, inner, harmonics, same = self._q_functions(q_out, q_in)
            functions = self._p_functions(None)
            linear = self._linear(functions.at_zero)
        filtered: dict[tuple[int, int, bool], Tensor] = {}
        entries = x.split([mul * dim for mul, dim in self.shape_in], dim=2)
        parts = list(self.weight.to(outer.dtype).split(self.sizes))
        rows: list[Tensor | None] = [None] * len(self.shape_out)
        sizes: torch.Size = x.shape[3:]
        for pair in self.pairs:
            weights = [parts.pop(0) for _ in pair.paths]
            for lp in self._p_degrees_of(pair):
                plain = linear if lp == 0 and (pair.i, pair.o) in self.linear_pairs else None
                key = (pair.i, lp, plain is not None)
                if key not in filtered:
                    basis = self._basis_functions(functions, lp, plain, any(p.lp == lp for p in pair.paths))
                    filtered[key] = responses(entries[pair.i].flatten(1, 2), basis, options)
                h = filtered[key]
                sizes = h.shape[3:]
                with torch.autocast(x.device.type, enabled=False):
                    matrix = self._p_basis_matrix(pair, lp, weights, (outer, inner, harmonics, same), plain)
                rows[pair.o] = _accumulate(rows[pair.o], matrix.to(h.dtype), h.flatten(3).flatten(1, 2))
        n_out = 1 if q_out is None else q_out.shape[-2]
        done = [
            x.new_zeros(len(x), n_out, mul * dim, *sizes)
            if row is None
            else row.view(len(x), n_out, -1, *sizes)
            for row, (mul, dim) in zip(rows, self.shape_out, strict=True)
        ]
        return torch.cat(done, dim=2)

    def _basis_functions(
        self, functions: PFunctions, lp: int, plain: tuple[Tensor, Tensor] | None, shaped: bool
    ) -> Tensor:
        """(B, P): radial x harmonics of degree `lp`, then the taps of the plain map."""
        rows = (
            [torch.einsum("pr,pb->rbp", functions.radial, functions.harmonics[lp]).flatten(0, 1)]
            if shaped
            else []
        )
        if plain is not None:
            taps = [plain[1]] if self.window else [plain[1], functions.at_zero]
            rows.append(torch.stack(taps))
        return torch.cat(rows)

    def _p_basis_matrix(
        self,
        pair: PairPaths,
        lp: int,
        weights: list[Tensor],
        q_functions: tuple[Tensor, Tensor, dict[int, Tensor], Tensor],
        plain: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """(..., Q_out·mul_out·d_out, Q_in·mul_in·d_in·B): everything but the functions of p, for one pair and lp."""
        outer, inner, harmonics, same = q_functions
        lefts, rights = [], []
        for path, key, weight in zip(pair.paths, pair.keys, weights, strict=True):
            if path.lp == lp:
                array = weight.view(self.n_p, outer.shape[-1], inner.shape[-1], pair.mul_out, pair.mul_in)
                lefts.append(torch.einsum("...qo,roiuv->...qruvi", outer, array))
                constants = getattr(self.constants, key).to(outer.dtype)
                angular = torch.einsum("mnab,...qsa->...qmnbs", constants, harmonics[path.lq])
                rights.append(torch.einsum("...qmnbs,...si->...qimnbs", angular, inner))
        blocks = []
        if lefts:
            left, right = torch.cat(lefts, dim=-1), torch.cat(rights, dim=-5)
            full = left.flatten(-4, -2) @ right.flatten(-4)
            lead, samples = full.shape[:-2], right.shape[-1]
            full = full.view(
                *lead, self.n_p, pair.mul_out, pair.mul_in, pair.dim_out, pair.dim_in, 2 * lp + 1, samples
            )
            axes = len(lead)  # (..., q, r, u, v, m, n, b, s) -> (..., q, u, m, s, v, n, r, b)
            full = full.permute(*range(axes), *(axes + a for a in (1, 3, 6, 2, 4, 0, 5)))
            blocks.append(
                full.reshape(*lead, pair.mul_out * pair.dim_out, samples, pair.mul_in * pair.dim_in, -1)
            )
        if plain is not None:
            blocks.append(self._plain_columns(pair, plain[0], same))
        return torch.cat(blocks, dim=-1).flatten(-3).flatten(-3, -2)

    def _plain_columns(self, pair: PairPaths, matrix: Tensor, same: Tensor) -> Tensor:
        """(..., Q_out, mul_out·d_out, Q_in, mul_in·d_in, 1 or 2) share of the plain map at dq = 0 and at p = 0."""
        row = sum(m * d for m, d in self.shape_out[: pair.o])
        column = sum(m * d for m, d in self.shape_in[: pair.i])
        block = matrix[row : row + pair.mul_out * pair.dim_out, column : column + pair.mul_in * pair.dim_in]
        shares = [same] if self.window else [same, torch.ones_like(same)]
        return torch.einsum("uv,...qst->...qusvt", block, torch.stack(shares, dim=-1))


def _accumulate(total: Tensor | None, matrix: Tensor, h: Tensor) -> Tensor:
    """total + matrix ([N,] R, C) @ h (N, C, V)."""
    if total is None:
        return matrix @ h
    return torch.baddbmm(total, matrix.expand(len(h), -1, -1), h)


def _plain(total: Tensor, weight: Tensor, options: ConvOptions) -> Tensor:
    """The map at p = 0 of the sum over samples: the same for every q_out, (N, 1, dim_out, X', Y', Z')."""
    return dense_conv(total.unsqueeze(1), weight.unsqueeze(1).unsqueeze(3), options)
