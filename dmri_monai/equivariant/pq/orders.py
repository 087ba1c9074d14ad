"""The orders in which a factorising kernel can be contracted with its input, and which is cheapest.

All give the same result: q_first, p_first, p_basis and p_last (see their modules), and dense, which builds the kernel
of all pairs of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from dmri_monai.equivariant.pq.channel_order import contract_p_last, mixtures, prepare_p_last
from dmri_monai.equivariant.pq.contraction import ConvOptions, dense_conv
from dmri_monai.equivariant.pq.factors import Factors, Layout
from dmri_monai.equivariant.pq.function_order import (
    contract_p_basis,
    p_basis_columns,
    p_basis_degrees,
    prepare_p_basis,
)
from dmri_monai.equivariant.pq.sample_kernels import (
    contract_p_first,
    contract_q_first,
    dense_kernel,
    prepare_p_first,
    prepare_q_first,
)

__all__ = ["ORDERS", "Order", "Sizes", "cheapest", "costs"]


class Order(NamedTuple):
    """prepare: what is built from weights and tables.  contract: (x, prepared, layout, options) -> output."""

    prepare: Callable[[Factors], Any]
    contract: Callable[[Tensor, Any, Layout, ConvOptions], Tensor]


def _contract_dense(x: Tensor, full: Tensor, _layout: Layout, options: ConvOptions) -> Tensor:
    return dense_conv(x, full, options)


ORDERS = {
    "dense": Order(dense_kernel, _contract_dense),
    "q_first": Order(prepare_q_first, contract_q_first),
    "p_first": Order(prepare_p_first, contract_p_first),
    "p_basis": Order(prepare_p_basis, contract_p_basis),
    "p_last": Order(prepare_p_last, contract_p_last),
}


class Sizes(NamedTuple):
    """What the cost depends on besides the layout. shrink: voxels of the output per voxel of the input."""

    n_out: int
    n_in: int
    voxels: int
    shrink: float
    on_cpu: bool


# Time of one multiplication against that of one in a large matrix product or dense convolution, measured on CPUs.
GROUPED = 4.0  # convolution in small groups
BATCHED = 1.7  # batch of small matrix products
ANALYSIS = 8.0  # convolution of one channel by several functions
SYNTHESIS = 12.0  # convolution of several channels to one


def costs(layout: Layout, sizes: Sizes) -> dict[str, float]:
    """Multiplications per voxel of the input that every order takes, weighted by how well they run."""
    n_out, n_in, shrink = sizes.n_out, sizes.n_in, sizes.shrink
    both = layout.kernel_size**3 * layout.dim_in * layout.dim_out * shrink
    linear = bool(layout.linear)
    angular = sum(2 * lq + 1 for lq in layout.q_degrees)
    c_in, c_out = layout.n_i * angular + linear, layout.n_o * angular + linear
    in_groups, out_groups = (GROUPED if n > 1 else 1.0 for n in (n_in, n_out))
    found = {
        "dense": n_out * n_in * both * (1.0 + c_in / max(sizes.voxels, 1)),
        "q_first": n_out * c_in * (n_in * layout.dim_in + out_groups * both),
        "p_first": n_in * c_out * (n_out * layout.dim_out * shrink + in_groups * both),
        "p_basis": shrink * _p_basis(layout, n_out, n_in),
    }
    return {**found, "p_last": _p_last(layout, n_out, n_in, shrink)} if sizes.on_cpu else found


def cheapest(layout: Layout, sizes: Sizes) -> str:
    """The order of least cost. p_last was measured on CPUs only and is left to them."""
    cost = costs(layout, sizes)
    return min(cost, key=cost.__getitem__)


def _p_basis(layout: Layout, n_out: int, n_in: int) -> float:
    products = sum(
        pair.mul_out * pair.dim_out * pair.mul_in * pair.dim_in * p_basis_columns(layout, pair, lp)
        for pair in layout.pairs
        for lp in p_basis_degrees(layout, pair)
    )
    functions = sum(layout.functions(lp) for lp in layout.p_degrees)
    return n_in * layout.dim_in * functions * layout.kernel_size**3 * ANALYSIS + n_out * n_in * products


def _p_last(layout: Layout, n_out: int, n_in: int, shrink: float) -> float:
    channels, mixed, filtered = 0, {}, {}
    for product in mixtures(layout):
        pair = layout.pairs[product.pair]
        rows = pair.mul_out * pair.dim_out * (1 if product.lp is None else layout.functions(product.lp))
        width = 1 if product.degree is None else layout.n_i * (2 * product.degree + 1)
        columns = width * pair.mul_in * pair.dim_in
        mixed[pair.i, product.degree], filtered[pair.o, product.lp] = columns, rows
        channels += rows * columns
    filtering = sum(filtered.values()) * layout.kernel_size**3 * shrink
    return n_out * (n_in * sum(mixed.values()) + BATCHED * channels + SYNTHESIS * filtering)
