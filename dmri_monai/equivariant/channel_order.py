"""Order of contraction p_last: mix samples, then channels, then filter every output channel by functions of p.

g[q_out, (i, a), (v, n)] = sum over q_in of phi_i(|q_in|) Y_a(dq) x[q_in, (v, n)]
t[q_out, (u, m), (r, b)] = sum over paths and (o, i, a, v, n) of W phi_o(|q_out|) C[m, n, a, b] g
y[q_out, (u, m)]         = sum over (r, b) of (R_r Y_b) * t
Only the first step is quadratic in the number of samples.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmri_monai.equivariant.contraction import ConvOptions, filtered_sum, plain_conv
from dmri_monai.equivariant.factors import Factors, Layout, everywhere_map, linear_taps
from dmri_monai.equivariant.paths import PairPaths

__all__ = ["ChannelMix", "Mixture", "contract_p_last", "mixtures", "prepare_p_last"]


class Mixture(NamedTuple):
    """One product of the second step: mixtures `start`..`stop` of an input entry, to functions of one degree of p.

    degrees: of the harmonics of dq in those mixtures, ascending; (None,) and lp None are the plain map's.
    """

    pair: int
    lp: int | None
    degrees: tuple[int | None, ...]
    start: int
    stop: int


class ChannelMix(NamedTuple):
    """Arrays of the three steps, for `n_out` samples.

    samples: per input entry (..., Q_out·C, Q_in).  channels: per `Mixture` (..., Q_out, mul_out·d_out·B, C'·mul_in·d_in).
    functions: (B, P) per degree of p, None the plain map's.  everywhere: plain map (dim_out, dim_in, P) of all pairs.
    """

    samples: list[Tensor]
    channels: list[Tensor]
    functions: dict[int | None, Tensor]
    everywhere: Tensor | None
    n_out: int


def mixed_degrees(layout: Layout, i: int) -> list[int | None]:
    """Degrees of the harmonics of dq that input entry `i` is mixed by; None, last, is where dq = 0."""
    degrees: list[int | None] = list(sorted({path.lq for p in layout.pairs if p.i == i for path in p.paths}))
    return [*degrees, None] if any(layout.is_linear(p) for p in layout.pairs if p.i == i) else degrees


def mixture_size(layout: Layout, degree: int | None) -> int:
    """Number of mixtures by the harmonics of one degree."""
    return 1 if degree is None else layout.n_i * (2 * degree + 1)


def mixtures(layout: Layout) -> list[Mixture]:
    """The products of the second step."""
    found = []
    for index, pair in enumerate(layout.pairs):
        degrees = mixed_degrees(layout, pair.i)
        wanted: list[tuple[int | None, set[int | None]]] = [
            (lp, {path.lq for path in pair.paths if path.lp == lp})
            for lp in sorted({path.lp for path in pair.paths})
        ]
        if layout.is_linear(pair):
            wanted.append((None, {None}))
        for lp, mine in wanted:
            places = [place for place, degree in enumerate(degrees) if degree in mine]
            first, last = places[0], places[-1] + 1
            start = sum(mixture_size(layout, degree) for degree in degrees[:first])
            size = sum(mixture_size(layout, degree) for degree in degrees[first:last])
            found.append(Mixture(index, lp, tuple(degrees[first:last]), start, start + size))
    return found


def prepare_p_last(factors: Factors) -> ChannelMix:
    """The matrices that mix samples and channels, and the functions of p."""
    layout = factors.layout
    products = mixtures(layout)
    functions: dict[int | None, Tensor] = {
        lp: torch.einsum("pr,pb->rbp", factors.p.radial, factors.p.harmonics[lp]).flatten(0, 1)
        for lp in layout.p_degrees
    }
    if factors.linear is not None:
        functions[None] = linear_taps(factors)[0].unsqueeze(0)
    return ChannelMix(
        [_sample_matrix(factors, i) for i in range(len(layout.shape_in))],
        [_channel_matrix(factors, product) for product in products],
        functions,
        everywhere_map(factors),
        factors.same.shape[-2],
    )


def _sample_matrix(factors: Factors, i: int) -> Tensor:
    """(..., Q_out·C, Q_in) matrix that mixes the samples of input entry `i`."""
    parts = [factors.same.new_zeros(*factors.same.shape[:-1], 0, factors.same.shape[-1])]
    for degree in mixed_degrees(factors.layout, i):
        if degree is None:
            parts.append(factors.same.unsqueeze(-2))
        else:
            harmonics = factors.harmonics[degree]
            parts.append(torch.einsum("...qsa,...si->...qias", harmonics, factors.inner).flatten(-3, -2))
    return torch.cat(parts, dim=-2).flatten(-3, -2)


def _channel_matrix(factors: Factors, product: Mixture) -> Tensor:
    """(..., Q_out, mul_out·d_out·B, C·mul_in·d_in) of one product."""
    layout, pair = factors.layout, factors.layout.pairs[product.pair]
    if product.lp is None:
        return factors.linear_block(pair).expand(*factors.same.shape[:-1], -1, -1)
    rows, columns = pair.mul_out * pair.dim_out * layout.functions(product.lp), pair.mul_in * pair.dim_in
    blocks = []
    for degree in product.degrees:
        total = factors.outer.new_zeros(())
        size = (*factors.same.shape[:-1], rows, mixture_size(layout, degree) * columns)
        for path, key, weight in zip(pair.paths, pair.keys, factors.weights[product.pair], strict=True):
            if (path.lq, path.lp) == (degree, product.lp):
                mixed = torch.einsum("...qo,roiuv->...qriuv", factors.outer, weight)
                full = torch.einsum("...qriuv,mnab->...qumrbiavn", mixed, factors.couplings[key])
                total = total + full.reshape(*full.shape[:-8], rows, -1)
        blocks.append(total.expand(size))
    return torch.cat(blocks, dim=-1)


def contract_p_last(x: Tensor, prepared: ChannelMix, layout: Layout, options: ConvOptions) -> Tensor:
    """x (N, dim_in, Q_in, X, Y, Z) -> (N, dim_out, Q_out, X', Y', Z')."""
    channels = _mixed_channels(x, prepared, layout)
    outputs = []
    for o, (mul, dim) in enumerate(layout.shape_out):
        shape = (len(x), prepared.n_out * mul * dim, -1, *x.shape[3:])
        mine = [(t.view(shape), prepared.functions[lp]) for (entry, lp), t in channels.items() if entry == o]
        fields, functions = (
            zip(*mine, strict=True) if mine else ((x.new_zeros(shape[:2] + (0, *shape[3:])),), ())
        )
        y = filtered_sum(torch.cat(fields, dim=2), torch.cat(functions), options)
        outputs.append(y.unflatten(1, (prepared.n_out, mul * dim)))
    y = torch.cat(outputs, dim=2).transpose(1, 2)
    return y if prepared.everywhere is None else y + plain_conv(x, prepared.everywhere, options)


def _mixed_samples(x: Tensor, prepared: ChannelMix, layout: Layout) -> list[Tensor]:
    """Per input entry (N, Q_out, C, mul_in·d_in, voxels)."""
    mixed = []
    for entry, matrix in zip(
        x.split([mul * dim for mul, dim in layout.shape_in], dim=1), prepared.samples, strict=True
    ):
        g = matrix.to(x.dtype) @ entry.transpose(1, 2).flatten(2)
        mixed.append(g.view(len(x), prepared.n_out, -1, entry.shape[1], entry[0, 0, 0].numel()))
    return mixed


def _mixed_channels(x: Tensor, prepared: ChannelMix, layout: Layout) -> dict[tuple[int, int | None], Tensor]:
    """{(output entry, degree of p): (N·Q_out, mul_out·d_out·B, voxels)}, the sum over input entries."""
    samples = _mixed_samples(x, prepared, layout)
    totals: dict[tuple[int, int | None], Tensor] = {}
    for product, matrix in zip(mixtures(layout), prepared.channels, strict=True):
        pair = layout.pairs[product.pair]
        g = samples[pair.i][:, :, product.start : product.stop].flatten(2, 3).flatten(0, 1)
        matrix = matrix.to(x.dtype).expand(len(x), *matrix.shape[-3:]).flatten(0, 1)
        key = (pair.o, product.lp)
        totals[key] = torch.baddbmm(totals[key], matrix, g) if key in totals else matrix @ g
    return totals
