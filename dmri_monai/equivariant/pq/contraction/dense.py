"""Strategy "dense": build the kernel between all pairs of samples and run one convolution. Best for few samples."""

from __future__ import annotations

import torch
from torch import Tensor

from dmri_monai.equivariant.pq.contraction.convolutions import dense_conv
from dmri_monai.equivariant.pq.contraction.factors import Factors, Layout, everywhere_map, linear_taps
from dmri_monai.equivariant.pq.contraction.interface import ConvOptions, Sizes, Strategy
from dmri_monai.equivariant.pq.contraction.paths import PairPaths, Path

__all__ = ["DENSE", "dense_cost"]


def dense_kernel(factors: Factors) -> Tensor:
    """(..., dim_out, Q_out, dim_in, Q_in, P): the whole kernel."""
    angular = _angular_matrix(factors)
    matrix = torch.einsum("...qsa,...si->...qias", angular, factors.inner).flatten(-3, -2)
    kernels = torch.einsum("...qo,oidavp->...qdiavp", factors.outer, _p_kernels(factors)).flatten(-4, -3)
    if factors.linear is not None:
        away = (factors.linear.unsqueeze(-1) * linear_taps(factors)[0]).unsqueeze(1)
        matrix = torch.cat([matrix, factors.same.unsqueeze(-2)], dim=-2)
        kernels = torch.cat([kernels, away.expand(*kernels.shape[:-4], -1, -1, -1, -1)], dim=-3)
    full = torch.einsum("...qcs,...qdcvp->...dqvsp", matrix, kernels)
    everywhere = everywhere_map(factors)
    return full if everywhere is None else full + everywhere.unsqueeze(1).unsqueeze(3)


def _contract(x: Tensor, full: Tensor, _layout: Layout, options: ConvOptions) -> Tensor:
    return dense_conv(x, full, options)


def dense_cost(dims: int, taps: int, sizes: Sizes) -> float:
    """Multiplications of the convolution, for the product `dims` of input and output components."""
    return sizes.n_out * sizes.n_in * dims * taps * sizes.shrink


def _cost(layout: Layout, sizes: Sizes) -> float:
    functions = layout.n_i * sum(2 * lq + 1 for lq in layout.q_degrees) + bool(layout.linear)
    convolution = dense_cost(layout.dim_in * layout.dim_out, layout.kernel_size**3, sizes)
    return convolution * (1.0 + functions / max(sizes.voxels, 1))


DENSE = Strategy(dense_kernel, _contract, _cost)


def _angular_matrix(factors: Factors) -> Tensor:
    """(..., Q_out, Q_in, A): the harmonics of dq of all degrees in use."""
    same = factors.same
    parts = (factors.harmonics[lq] for lq in factors.layout.q_degrees)
    return torch.cat([same.new_zeros(*same.shape, 0), *parts], dim=-1)


def _p_kernels(factors: Factors) -> Tensor:
    """(n_o, n_i, dim_out, A, dim_in, P): the kernels K_oia(p)."""
    blocks = [_pair_kernel(factors, pair, weights) for pair, weights in factors.entries()]
    columns = len(factors.layout.shape_in)
    rows = [torch.cat(blocks[start : start + columns], dim=4) for start in range(0, len(blocks), columns)]
    return torch.cat(rows, dim=2)


def _pair_kernel(factors: Factors, pair: PairPaths, weights: list[Tensor]) -> Tensor:
    """(n_o, n_i, mul_out·d_out, A, mul_in·d_in, P) of one pair of irreps."""
    layout, taps = factors.layout, len(factors.p.radial)
    d_out, d_in = pair.mul_out * pair.dim_out, pair.mul_in * pair.dim_in
    per_lq = [factors.p.radial.new_zeros(layout.n_o, layout.n_i, d_out, 0, d_in, taps)]
    for lq in layout.q_degrees:
        mine = [index for index, path in enumerate(pair.paths) if path.lq == lq]
        if not mine:
            sizes = (layout.n_o, layout.n_i, d_out, 2 * lq + 1, d_in, taps)
            per_lq.append(factors.p.radial.new_zeros(sizes))
            continue
        basis = torch.cat([_path_functions(factors, pair.paths[k], pair.keys[k]) for k in mine])
        mixed = torch.cat([weights[k].flatten(1) for k in mine]).T @ basis.flatten(1)
        mixed = mixed.view(
            layout.n_o, layout.n_i, pair.mul_out, pair.mul_in, pair.dim_out, pair.dim_in, -1, taps
        )
        per_lq.append(mixed.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(2, 3).flatten(4, 5))
    return torch.cat(per_lq, dim=3)


def _path_functions(factors: Factors, path: Path, key: str) -> Tensor:
    """(n_p, d_out, d_in, 2lq+1, P) of one path."""
    angular = torch.einsum("mnab,pb->mnap", factors.couplings[key], factors.p.harmonics[path.lp])
    return torch.einsum("mnap,pr->rmnap", angular, factors.p.radial)
