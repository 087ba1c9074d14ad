"""Strategy "p_last": mix samples, then channels, then filter every output channel by functions of p.

g[q_out, (i, a), (v, n)] = sum over q_in of phi_i(|q_in|) Y_a(dq) x[q_in, (v, n)]
t[q_out, (u, m), (r, b)] = sum over paths and (o, i, a, v, n) of W phi_o(|q_out|) C[m, n, a, b] g
y[q_out, (u, m)]         = sum over (r, b) of (R_r Y_b) * t
Only the first step is quadratic in the number of samples: best for many channels and long tables.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmri_monai.equivariant.pq.contraction.convolutions import filtered_sum, plain_conv
from dmri_monai.equivariant.pq.contraction.factors import Factors, Layout, everywhere_map, linear_taps
from dmri_monai.equivariant.pq.contraction.interface import ConvOptions, Sizes, Strategy

__all__ = ["P_LAST"]

# Time of a multiplication against that of one in a large matrix product, measured on CPUs.
BATCHED = 1.7  # batch of small matrix products
SYNTHESIS = 8.0  # convolution of several channels to one


class Mixture(NamedTuple):
    """One product of the second step, between the two entries of a pair.

    degree: of the harmonics of dq that mixed the input.  lp: of the functions of p.  Both None: the plain map.
    """

    pair: int
    degree: int | None
    lp: int | None


class ChannelMix(NamedTuple):
    """Arrays of the three steps, for `n_out` samples.

    samples: {degree: (..., Q_out·C, Q_in)}.  channels: per `Mixture` (..., Q_out, mul_out·d_out·B, C·mul_in·d_in).
    functions: {lp: (B, P)}.  everywhere: plain map (dim_out, dim_in, P) of all pairs of samples.
    """

    samples: dict[int | None, Tensor]
    channels: list[Tensor]
    functions: dict[int | None, Tensor]
    everywhere: Tensor | None
    n_out: int


def _mixtures(layout: Layout) -> list[Mixture]:
    """The products of the second step."""
    found = []
    for index, pair in enumerate(layout.pairs):
        degrees = sorted({(path.lq, path.lp) for path in pair.paths})
        found += [Mixture(index, lq, lp) for lq, lp in degrees]
        if layout.is_linear(pair):
            found.append(Mixture(index, None, None))
    return found


def _prepare(factors: Factors) -> ChannelMix:
    """The matrices that mix samples and channels, and the functions of p."""
    products = _mixtures(factors.layout)
    functions: dict[int | None, Tensor] = {
        lp: torch.einsum("pr,pb->rbp", factors.p.radial, factors.p.harmonics[lp]).flatten(0, 1)
        for lp in factors.layout.p_degrees
    }
    samples: dict[int | None, Tensor] = {
        lq: torch.einsum("...qsa,...si->...qias", factors.harmonics[lq], factors.inner).flatten(-4, -2)
        for lq in factors.layout.q_degrees
    }
    if factors.linear is not None:
        functions[None], samples[None] = linear_taps(factors)[0].unsqueeze(0), factors.same
    channels = [_channel_matrix(factors, product) for product in products]
    return ChannelMix(samples, channels, functions, everywhere_map(factors), factors.same.shape[-2])


def _channel_matrix(factors: Factors, product: Mixture) -> Tensor:
    """(..., Q_out, mul_out·d_out·B, C·mul_in·d_in) of one product."""
    pair, weights = factors.entries()[product.pair]
    if product.lp is None:
        return factors.linear_block(pair).expand(*factors.same.shape[:-1], -1, -1)
    total = factors.outer.new_zeros(())
    for path, key, weight in zip(pair.paths, pair.keys, weights, strict=True):
        if (path.lq, path.lp) == (product.degree, product.lp):
            mixed = torch.einsum("...qo,roiuv->...qriuv", factors.outer, weight)
            total = total + torch.einsum("...qriuv,mnab->...qumrbiavn", mixed, factors.couplings[key])
    return total.flatten(-4).flatten(-5, -2).expand(*factors.same.shape[:-1], -1, -1)


def _contract(x: Tensor, prepared: ChannelMix, layout: Layout, options: ConvOptions) -> Tensor:
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


def _mixed_channels(x: Tensor, prepared: ChannelMix, layout: Layout) -> dict[tuple[int, int | None], Tensor]:
    """{(output entry, degree of p): (N·Q_out, mul_out·d_out·B, voxels)}, the sum over input entries."""
    entries = [
        e.transpose(1, 2).flatten(2) for e in x.split([mul * dim for mul, dim in layout.shape_in], dim=1)
    ]
    mixed: dict[tuple[int, int | None], Tensor] = {}
    totals: dict[tuple[int, int | None], Tensor] = {}
    for product, matrix in zip(_mixtures(layout), prepared.channels, strict=True):
        pair = layout.pairs[product.pair]
        source, target = (pair.i, product.degree), (pair.o, product.lp)
        matrix = matrix.to(x.dtype).expand(len(x), *matrix.shape[-3:]).flatten(0, 1)
        if source not in mixed:
            g = prepared.samples[product.degree].to(x.dtype) @ entries[pair.i]
            mixed[source] = g.view(len(matrix), matrix.shape[-1], -1)
        if target in totals:
            totals[target] = torch.baddbmm(totals[target], matrix, mixed[source])
        else:
            totals[target] = matrix @ mixed[source]
    return totals


def _cost(layout: Layout, sizes: Sizes) -> float:
    """Measured on CPUs only, and left to them."""
    if not sizes.on_cpu:
        return float("inf")
    channels, mixed, filtered = 0, {}, {}
    for product in _mixtures(layout):
        pair = layout.pairs[product.pair]
        rows = pair.mul_out * pair.dim_out * (1 if product.lp is None else layout.functions(product.lp))
        width = 1 if product.degree is None else layout.n_i * (2 * product.degree + 1)
        columns = width * pair.mul_in * pair.dim_in
        mixed[pair.i, product.degree], filtered[pair.o, product.lp] = columns, rows
        channels += rows * columns
    filtering = sum(filtered.values()) * layout.kernel_size**3 * sizes.shrink
    return sizes.n_out * (sizes.n_in * sum(mixed.values()) + BATCHED * channels + SYNTHESIS * filtering)


P_LAST = Strategy(_prepare, _contract, _cost)
