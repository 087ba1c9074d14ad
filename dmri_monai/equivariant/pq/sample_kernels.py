"""Orders of contraction with a small kernel for every sample (q first, p first), and the dense kernel of all pairs.

- q_first: one matrix product mixes the Q_in samples into n_i·A channels per q_out, then a small kernel for each q_out;
- p_first: the reverse.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmri_monai.equivariant.pq.contraction import ConvOptions, grouped_conv, plain_conv
from dmri_monai.equivariant.pq.factors import (
    Factors,
    Layout,
    angular_matrix,
    everywhere_map,
    linear_taps,
    p_kernels,
)

__all__ = [
    "SampleKernels",
    "contract_p_first",
    "contract_q_first",
    "dense_kernel",
    "prepare_p_first",
    "prepare_q_first",
]


class SampleKernels(NamedTuple):
    """A mixture of samples, a kernel for each, and the plain map (dim_out, dim_in, P) that stands for all pairs."""

    matrix: Tensor
    kernels: Tensor
    everywhere: Tensor | None


def _q_first(factors: Factors) -> SampleKernels:
    """Matrix (..., Q_out, C, Q_in) and kernels (..., Q_out, dim_out, C, dim_in, P)."""
    angular = angular_matrix(factors)
    matrix = torch.einsum("...qsa,...si->...qias", angular, factors.inner).flatten(-3, -2)
    kernels = torch.einsum("...qo,oidavp->...qdiavp", factors.outer, p_kernels(factors)).flatten(-4, -3)
    if factors.linear is not None:
        away = (factors.linear.unsqueeze(-1) * linear_taps(factors)[0]).unsqueeze(1)
        matrix = torch.cat([matrix, factors.same.unsqueeze(-2)], dim=-2)
        kernels = torch.cat([kernels, away.expand(*kernels.shape[:-4], -1, -1, -1, -1)], dim=-3)
    return SampleKernels(matrix, kernels, everywhere_map(factors))


def dense_kernel(factors: Factors) -> Tensor:
    """(..., dim_out, Q_out, dim_in, Q_in, P): the whole kernel."""
    matrix, kernels, everywhere = _q_first(factors)
    full = torch.einsum("...qcs,...qdcvp->...dqvsp", matrix, kernels)
    return full if everywhere is None else full + everywhere.unsqueeze(1).unsqueeze(3)


def prepare_q_first(factors: Factors) -> SampleKernels:
    """Matrix (..., Q_out, C, Q_in) and kernels (..., Q_out, dim_out, C·dim_in, P)."""
    matrix, kernels, everywhere = _q_first(factors)
    return SampleKernels(matrix, kernels.flatten(-3, -2), everywhere)


def contract_q_first(x: Tensor, prepared: SampleKernels, layout: Layout, options: ConvOptions) -> Tensor:
    """x (N, dim_in, Q_in, X, Y, Z) -> (N, dim_out, Q_out, X', Y', Z')."""
    matrix, kernels, everywhere = prepared
    mixed = matrix.flatten(-3, -2).to(x.dtype) @ x.transpose(1, 2).flatten(2)
    mixed = mixed.view(len(x), matrix.shape[-3], -1, *x.shape[3:])
    y = grouped_conv(mixed, kernels, options).transpose(1, 2)
    return y if everywhere is None else y + plain_conv(x, everywhere, options)


def prepare_p_first(factors: Factors) -> SampleKernels:
    """Kernels (..., Q_in, C·dim_out, dim_in, P), and the matrix (..., Q_out, Q_in·C) that mixes what they give."""
    kernels = torch.einsum("...si,oidavp->...soadvp", factors.inner, p_kernels(factors)).flatten(-5, -4)
    matrix = torch.einsum("...qo,...qsa->...qsoa", factors.outer, angular_matrix(factors)).flatten(-2)
    if factors.linear is not None:
        away = factors.linear.unsqueeze(-1) * linear_taps(factors)[0]
        kernels = torch.cat([kernels, away.expand(*kernels.shape[:-4], 1, -1, -1, -1)], dim=-4)
        matrix = torch.cat([matrix, factors.same.unsqueeze(-1)], dim=-1)
    return SampleKernels(matrix.flatten(-2), kernels.flatten(-4, -3), everywhere_map(factors))


def contract_p_first(x: Tensor, prepared: SampleKernels, layout: Layout, options: ConvOptions) -> Tensor:
    """x (N, dim_in, Q_in, X, Y, Z) -> (N, dim_out, Q_out, X', Y', Z')."""
    matrix, kernels, everywhere = prepared
    filtered = grouped_conv(x.transpose(1, 2), kernels, options)
    sizes = filtered.shape[3:]
    mixed = matrix.to(x.dtype) @ filtered.reshape(len(x), matrix.shape[-1], -1)
    y = mixed.view(len(x), matrix.shape[-2], layout.dim_out, *sizes).transpose(1, 2)
    return y if everywhere is None else y + plain_conv(x, everywhere, options)
