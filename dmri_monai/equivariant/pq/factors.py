"""The factors of a kernel that separates p- from q-space, and what the orders of contraction build from them.

K(p, q_out, q_in) = sum over (o, i, a) of phi_o(|q_out|) phi_i(|q_in|) Y_a(dq) K_oia(p), where a runs over the
components of the harmonics of dq, plus a plain linear map where an offset has no direction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmri_monai.equivariant.pq.paths import LinearShape, PairPaths, Path, PFunctions

__all__ = ["Factors", "Layout", "angular_matrix", "everywhere_map", "linear_taps", "p_kernels"]


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


def angular_matrix(factors: Factors) -> Tensor:
    """(..., Q_out, Q_in, A): the harmonics of dq of all degrees in use."""
    same = factors.same
    parts = (factors.harmonics[lq] for lq in factors.layout.q_degrees)
    return torch.cat([same.new_zeros(*same.shape, 0), *parts], dim=-1)


def p_kernels(factors: Factors) -> Tensor:
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
