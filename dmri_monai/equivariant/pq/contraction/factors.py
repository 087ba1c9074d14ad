"""The factors of a kernel that separates p- from q-space, which every strategy of contraction starts from.

K(p, q_out, q_in) = sum over (o, i, a) of phi_o(|q_out|) phi_i(|q_in|) Y_a(dq) K_oia(p), where a runs over the
components of the harmonics of dq, plus a plain linear map where an offset has no direction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmri_monai.equivariant.pq.contraction.paths import LinearShape, PairPaths, PFunctions

__all__ = ["Factors", "Layout", "everywhere_map", "linear_taps"]


class Layout(NamedTuple):
    """The sizes of a factorising kernel, in plain numbers.

    linear: (i, o) entries that the plain map connects.  n_p, n_o, n_i: radial functions of |p|, |q_out|, |q_in|.
    window: constant over the voxels of the kernel.
    """

    pairs: tuple[PairPaths, ...]
    shape_in: LinearShape
    shape_out: LinearShape
    linear: tuple[tuple[int, int], ...]
    n_p: int
    n_o: int
    n_i: int
    window: bool
    kernel_size: int

    @property
    def dim_in(self) -> int:
        return sum(mul * dim for mul, dim in self.shape_in)

    @property
    def dim_out(self) -> int:
        return sum(mul * dim for mul, dim in self.shape_out)

    @property
    def q_degrees(self) -> list[int]:
        """Degrees of the harmonics of dq in use, ascending."""
        return sorted({path.lq for pair in self.pairs for path in pair.paths})

    @property
    def p_degrees(self) -> list[int]:
        """Degrees of the harmonics of p in use, ascending."""
        return sorted({path.lp for pair in self.pairs for path in pair.paths})

    def is_linear(self, pair: PairPaths) -> bool:
        """Whether the plain map connects the two entries."""
        return (pair.i, pair.o) in self.linear

    def functions(self, degree: int) -> int:
        """Number of p-functions of one degree: radial times components."""
        return self.n_p * (2 * degree + 1)


class Factors(NamedTuple):
    """Values of all factors for one pair of tables and one set of offsets.

    outer (..., Q_out, n_o), inner (..., Q_in, n_i): radial functions.  harmonics: {lq: (..., Q_out, Q_in, 2lq+1)}.
    same (..., Q_out, Q_in): where dq = 0.  weights: per pair and path (n_p, n_o, n_i, mul_out, mul_in).
    couplings: per name of a path (d_out, d_in, 2lq+1, 2lp+1).  linear: (dim_out, dim_in) plain map.
    """

    layout: Layout
    outer: Tensor
    inner: Tensor
    harmonics: dict[int, Tensor]
    same: Tensor
    p: PFunctions
    weights: list[list[Tensor]]
    couplings: dict[str, Tensor]
    linear: Tensor | None

    def entries(self) -> list[tuple[PairPaths, list[Tensor]]]:
        """Every pair with the weights of its paths."""
        return list(zip(self.layout.pairs, self.weights, strict=True))

    def linear_block(self, pair: PairPaths) -> Tensor:
        """(mul_out·d_out, mul_in·d_in) part of the plain map between the entries of `pair`."""
        assert self.linear is not None
        row = sum(mul * dim for mul, dim in self.layout.shape_out[: pair.o])
        column = sum(mul * dim for mul, dim in self.layout.shape_in[: pair.i])
        return self.linear[
            row : row + pair.mul_out * pair.dim_out, column : column + pair.mul_in * pair.dim_in
        ]


def linear_taps(factors: Factors) -> tuple[Tensor, Tensor | None]:
    """Where the plain map stands: taps (P,) where it needs dq = 0, and taps where it stands for every pair of samples.

    It stands where p = 0 or dq = 0: everywhere for dq = 0, and at p = 0 for all. A window has no p = 0 of its own.
    """
    at_zero = factors.p.at_zero
    return (torch.ones_like(at_zero), None) if factors.layout.window else (1 - at_zero, at_zero)


def everywhere_map(factors: Factors) -> Tensor | None:
    """(dim_out, dim_in, P): the plain map where it stands for every pair of samples, None if nowhere."""
    taps = linear_taps(factors)[1]
    return None if taps is None or factors.linear is None else factors.linear.unsqueeze(-1) * taps
