"""The parts of a `PQDiff` kernel between one entry of each irreps: dense, or without its functions of p - dq."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PairDegrees", "dense_block", "mix_block"]


class PairDegrees(NamedTuple):
    """Filter degrees between one entry of each irreps, and its sizes."""

    keys: tuple[str, ...]
    degrees: tuple[int, ...]
    mul_out: int
    mul_in: int
    dim_out: int
    dim_in: int


def dense_block(
    pair: PairDegrees,
    couplings: Sequence[Tensor],
    weight: Tensor,
    shaped: Sequence[Tensor],
    outer: Tensor,
    radial: Tensor,
) -> Tensor:
    """(..., mul_out·d_out, Q_out, mul_in·d_in, Q_in, P).

    `shaped` holds phi_i(|q_in|) Y_l(p - dq), each (..., Q_out, P, Q_in, 2l+1, n_i).
    """
    lead = shaped[0].shape[:-5]
    n_out, taps, n_in = shaped[0].shape[-5:-2]
    d_out, d_in = pair.mul_out * pair.dim_out, pair.mul_in * pair.dim_in
    if not pair.degrees:
        return outer.new_zeros(*lead, d_out, n_out, d_in, n_in, taps)
    angular = torch.cat(
        [
            torch.einsum("mnj,...qpsji->...qpimns", coupling.to(outer.dtype), shaped[degree])
            for coupling, degree in zip(couplings, pair.degrees, strict=True)
        ],
        dim=-4,
    ).flatten(-3)
    mixed = weight.view(len(pair.degrees), radial.shape[-1], outer.shape[-1], -1, pair.mul_out, pair.mul_in)
    mixed = torch.einsum("lroiuv,pr->lpoiuv", mixed, radial)
    mixed = torch.einsum("lpoiuv,...qo->...qpuvli", mixed, outer).flatten(-2).flatten(-3, -2)
    full = (mixed @ angular).unflatten(-1, (pair.dim_out, pair.dim_in, n_in))
    full = full.unflatten(-4, (pair.mul_out, pair.mul_in))
    axes = len(lead)  # (..., q, p, u, v, m, n, s) -> (..., u, m, q, v, n, s, p)
    full = full.permute([*range(axes), *(axes + a for a in (2, 4, 0, 3, 5, 6, 1))])
    return full.reshape(*lead, d_out, n_out, d_in, n_in, taps)


def mix_block(
    pair: PairDegrees,
    couplings: Sequence[Tensor],
    weight: Tensor,
    degree: int,
    outer: Tensor,
    radials: tuple[int, int, int],
) -> Tensor:
    """(..., Q_out, (2l+1)·r, mul_in·d_in, i, mul_out·d_out) of one degree; radials: numbers of functions r, o and i."""
    if degree not in pair.degrees:
        functions, d_in = radials[0] * (2 * degree + 1), pair.mul_in * pair.dim_in
        return outer.new_zeros(*outer.shape[:-1], functions, d_in, radials[2], pair.mul_out * pair.dim_out)
    index = pair.degrees.index(degree)
    mixed = weight.view(len(pair.degrees), *radials, pair.mul_out, pair.mul_in)[index]
    mixed = torch.einsum("roiuv,...qo->...qriuv", mixed, outer)
    block = torch.einsum("...qriuv,mnj->...qjrvnium", mixed, couplings[index].to(outer.dtype))
    return block.flatten(-2).flatten(-4, -3).flatten(-5, -4)
