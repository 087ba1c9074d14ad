"""Strategy "p_basis": filter the input by the few functions of p that span the kernel, then mix the rest.

Everything but the functions of p is one matrix product per pair of irreps and degree of p. Best for few channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmri_monai.equivariant.pq.contraction.convolutions import plain_conv, responses
from dmri_monai.equivariant.pq.contraction.factors import Factors, Layout, everywhere_map, linear_taps
from dmri_monai.equivariant.pq.contraction.interface import ConvOptions, Sizes, Strategy
from dmri_monai.equivariant.pq.contraction.paths import PairPaths

__all__ = ["P_BASIS"]

ANALYSIS = (
    8.0  # time of a multiplication in a convolution of one channel, against one in a large matrix product
)


class FunctionMix(NamedTuple):
    """Functions of p (B, P) of every (input entry, degree), and what mixes their responses into every output entry.

    mixes: (output entry, key of the functions, matrix (..., mul_out·d_out·Q_out, mul_in·d_in·Q_in·B)).
    everywhere: plain map (dim_out, dim_in, P) of all pairs of samples.
    """

    functions: dict[tuple[int, int, bool], Tensor]
    mixes: list[tuple[int, tuple[int, int, bool], Tensor]]
    everywhere: Tensor | None
    n_out: int


def _degrees(layout: Layout, pair: PairPaths) -> list[int]:
    """Degrees of p-functions between a pair; the plain map counts among those of degree 0."""
    return sorted({path.lp for path in pair.paths} | ({0} if layout.is_linear(pair) else set()))


def _columns(layout: Layout, pair: PairPaths, lp: int) -> int:
    """Number of p-functions of one degree between a pair, that of the plain map included."""
    shaped = any(path.lp == lp for path in pair.paths)
    return layout.functions(lp) * shaped + (lp == 0 and layout.is_linear(pair))


def _prepare(factors: Factors) -> FunctionMix:
    """The functions of p, and the matrices of everything else."""
    functions: dict[tuple[int, int, bool], Tensor] = {}
    mixes = []
    for pair, weights in factors.entries():
        for lp in _degrees(factors.layout, pair):
            key = (pair.i, lp, lp == 0 and factors.layout.is_linear(pair))
            if key not in functions:
                functions[key] = _functions(factors, lp, key[2], any(p.lp == lp for p in pair.paths))
            mixes.append((pair.o, key, _matrix(factors, pair, lp, weights, key[2])))
    return FunctionMix(functions, mixes, everywhere_map(factors), factors.same.shape[-2])


def _contract(x: Tensor, prepared: FunctionMix, layout: Layout, options: ConvOptions) -> Tensor:
    """x (N, dim_in, Q_in, X, Y, Z) -> (N, dim_out, Q_out, X', Y', Z')."""
    entries = x.split([mul * dim for mul, dim in layout.shape_in], dim=1)
    filtered = {
        key: responses(entries[key[0]].flatten(1, 2), functions, options)
        for key, functions in prepared.functions.items()
    }
    rows: list[Tensor | None] = [None] * len(layout.shape_out)
    for o, key, matrix in prepared.mixes:
        rows[o] = _accumulate(rows[o], matrix.to(x.dtype), filtered[key].flatten(3).flatten(1, 2))
    sizes = next(iter(filtered.values())).shape[3:]
    done = [
        x.new_zeros(len(x), mul * dim, prepared.n_out, *sizes)
        if row is None
        else row.view(len(x), mul * dim, prepared.n_out, *sizes)
        for row, (mul, dim) in zip(rows, layout.shape_out, strict=True)
    ]
    y = torch.cat(done, dim=1)
    return y if prepared.everywhere is None else y + plain_conv(x, prepared.everywhere, options)


def _functions(factors: Factors, lp: int, linear: bool, shaped: bool) -> Tensor:
    """(B, P): radial x harmonics of degree `lp`, then the taps of the plain map at dq = 0."""
    p = factors.p
    rows = [torch.einsum("pr,pb->rbp", p.radial, p.harmonics[lp]).flatten(0, 1)] if shaped else []
    if linear:
        rows.append(linear_taps(factors)[0].unsqueeze(0))
    return torch.cat(rows)


def _matrix(factors: Factors, pair: PairPaths, lp: int, weights: list[Tensor], linear: bool) -> Tensor:
    """(..., mul_out·d_out·Q_out, mul_in·d_in·Q_in·B): everything but the functions of p, for one pair and degree."""
    chosen = [index for index, path in enumerate(pair.paths) if path.lp == lp]
    blocks = [_shaped_columns(factors, pair, lp, weights, chosen)] if chosen else []
    if linear:
        blocks.append(_linear_columns(factors, pair))
    return torch.cat(blocks, dim=-1).flatten(-3).flatten(-3, -2)


def _shaped_columns(
    factors: Factors, pair: PairPaths, lp: int, weights: list[Tensor], chosen: list[int]
) -> Tensor:
    """(..., mul_out·d_out, Q_out, mul_in·d_in, Q_in, n_p·(2lp+1)) share of the paths `chosen`."""
    lefts, rights = [], []
    for index in chosen:
        lefts.append(torch.einsum("...qo,roiuv->...qruvi", factors.outer, weights[index]))
        couplings, lq = factors.couplings[pair.keys[index]], pair.paths[index].lq
        angular = torch.einsum("mnab,...qsa->...qmnbs", couplings, factors.harmonics[lq])
        rights.append(torch.einsum("...qmnbs,...si->...qimnbs", angular, factors.inner))
    left, right = torch.cat(lefts, dim=-1), torch.cat(rights, dim=-5)
    full = left.flatten(-4, -2) @ right.flatten(-4)
    lead, samples = full.shape[:-2], right.shape[-1]
    full = full.view(*lead, -1, pair.mul_out, pair.mul_in, pair.dim_out, pair.dim_in, 2 * lp + 1, samples)
    axes = len(lead)  # (..., q, r, u, v, m, n, b, s) -> (..., u, m, q, v, n, s, r, b)
    full = full.permute(*range(axes - 1), *(axes + a for a in (1, 3, -1, 2, 4, 6, 0, 5)))
    return full.reshape(
        *lead[:-1], pair.mul_out * pair.dim_out, lead[-1], pair.mul_in * pair.dim_in, samples, -1
    )


def _linear_columns(factors: Factors, pair: PairPaths) -> Tensor:
    """(..., mul_out·d_out, Q_out, mul_in·d_in, Q_in, 1) share of the plain map at dq = 0."""
    return torch.einsum("uv,...qs->...uqvs", factors.linear_block(pair), factors.same).unsqueeze(-1)


def _accumulate(total: Tensor | None, matrix: Tensor, h: Tensor) -> Tensor:
    """total + matrix ([N,] R, C) @ h (N, C, V)."""
    if total is None:
        return matrix @ h
    return torch.baddbmm(total, matrix.expand(len(h), -1, -1), h)


def _cost(layout: Layout, sizes: Sizes) -> float:
    products = sum(
        pair.mul_out * pair.dim_out * pair.mul_in * pair.dim_in * _columns(layout, pair, lp)
        for pair in layout.pairs
        for lp in _degrees(layout, pair)
    )
    functions = sum(layout.functions(lp) for lp in layout.p_degrees)
    filtering = sizes.n_in * layout.dim_in * functions * layout.kernel_size**3 * ANALYSIS
    return sizes.shrink * (filtering + sizes.n_out * sizes.n_in * products)


P_BASIS = Strategy(_prepare, _contract, _cost)
