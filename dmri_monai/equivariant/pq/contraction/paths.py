"""Bookkeeping of pq-kernels: which couplings exist between irreps, their constants, weights and radial functions."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.kernel.radial import RadialFunctions
from dmri_monai.equivariant.pq.contraction.interface import KernelContext
from dmri_monai.equivariant.pq.kernels import PQTensorProduct, QSpace, _Elementary
from dmri_monai.so3 import clebsch_gordan

if TYPE_CHECKING:
    from e3nn.o3 import Irrep, Irreps

__all__ = [
    "LinearShape",
    "PFunctions",
    "PairPaths",
    "Path",
    "QRadials",
    "coupling_constants",
    "filter_paths",
    "harmonic_scale",
    "linear_map",
    "linear_pairs",
    "p_window",
    "shape_of",
]


class PFunctions(NamedTuple):
    """Functions of voxel offsets: radial (P, n), harmonics per degree (P, 2l+1), and where the offset is zero (P,)."""

    radial: Tensor
    harmonics: list[Tensor]
    at_zero: Tensor


class Path(NamedTuple):
    """A filter of `degree` made of harmonics of degree `lq` in dq and `lp` in p."""

    degree: int
    lq: int
    lp: int


class PairPaths(NamedTuple):
    """All paths between entry `i` of the input and `o` of the output, the names of their constants, and sizes."""

    o: int
    i: int
    paths: tuple[Path, ...]
    keys: tuple[str, ...]
    mul_out: int
    mul_in: int
    dim_out: int
    dim_in: int


def filter_paths(kernel: _Elementary, ir_in: Irrep, ir_out: Irrep, context: KernelContext) -> list[Path]:
    """Paths of a factorising kernel from `ir_in` to `ir_out`, without those that vanish under antipodal averaging."""
    paths = []
    has_q = context.has_q_in or context.has_q_out
    for degree in kernel.degrees(ir_in, ir_out, None):
        pairs = kernel.couplings(degree) if isinstance(kernel, PQTensorProduct) else [(degree, 0)]
        for lq, lp in pairs:
            right_parity = not context.parity or ir_in.p * ir_out.p == (-1) ** (lq + lp)
            vanishes = (context.antipodal and lq % 2 == 1) or (not has_q and lq > 0)
            if right_parity and not vanishes:
                paths.append(Path(degree, lq, lp))
    return paths


def coupling_constants(ir_in: Irrep, ir_out: Irrep, path: Path) -> Tensor:
    """(d_out, d_in, 2lq+1, 2lp+1): both Clebsch-Gordan steps of a path, of unit mean square over outputs."""
    outer = sqrt(ir_out.dim) * clebsch_gordan(ir_out.l, ir_in.l, path.degree)
    inner = sqrt(2 * path.degree + 1) * clebsch_gordan(path.degree, path.lq, path.lp)
    return torch.einsum("mnj,jab->mnab", outer, inner)


def linear_pairs(irreps_in: Irreps, irreps_out: Irreps, context: KernelContext) -> list[tuple[int, int]]:
    """(i, o) entries that a plain equivariant linear map connects."""
    return [
        (i, o)
        for o, (_, b) in enumerate(irreps_out)
        for i, (_, a) in enumerate(irreps_in)
        if a.l == b.l and (a.p == b.p or not context.parity)
    ]


def linear_map(
    weight: Tensor, irreps_in: LinearShape, irreps_out: LinearShape, pairs: list[tuple[int, int]]
) -> Tensor:
    """(dim_out, dim_in) matrix: flat weights in the order of `pairs` between channels, identity on components."""
    blocks = {}
    start = 0
    for i, o in pairs:
        (m_in, d), (m_out, _) = irreps_in[i], irreps_out[o]
        part = weight[start : start + m_in * m_out].view(m_out, m_in)
        start += m_in * m_out
        eye = torch.eye(d, dtype=weight.dtype, device=weight.device)
        blocks[o, i] = torch.einsum("uv,mn->umvn", part, eye).reshape(m_out * d, m_in * d)
    rows = []
    for o, (m_out, d_out) in enumerate(irreps_out):
        row = [
            blocks.get((o, i), weight.new_zeros(m_out * d_out, m * d)) for i, (m, d) in enumerate(irreps_in)
        ]
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


LinearShape = tuple[tuple[int, int], ...]


def shape_of(irreps: Irreps) -> LinearShape:
    """(multiplicity, dimension) of every entry."""
    return tuple((mul, ir.dim) for mul, ir in irreps)


class QRadials(nn.Module):
    """Radial functions of |q_out| and |q_in|; a side without q-space has the single function 1."""

    def __init__(self, kernel: _Elementary, context: KernelContext) -> None:
        super().__init__()
        radial = kernel.q_radial.resolved(3)
        self.outer = RadialFunctions(radial) if context.has_q_out else None
        self.inner = RadialFunctions(radial) if context.has_q_in else None
        self.n_out = self.outer.n_out if self.outer is not None else 1
        self.n_in = self.inner.n_out if self.inner is not None else 1

    def forward(self, q_out: Tensor | None, q_in: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
        """(..., Q_out, n_out) and (..., Q_in, n_in)."""
        return _values(self.outer, q_out, like), _values(self.inner, q_in, like)

    @torch.no_grad()
    def energy(self, like: Tensor) -> float:
        """Mean square of phi(|q_out|) phi(|q_in|), summed over the functions, for lengths uniform on [0, 1]."""
        r = torch.linspace(0, 1, 21, dtype=like.dtype, device=like.device)
        parts = [
            f(r).square().mean(0).sum().item() if f is not None else 1.0 for f in (self.outer, self.inner)
        ]
        return parts[0] * parts[1]


def _values(functions: Callable[[Tensor], Tensor] | None, q: Tensor | None, like: Tensor) -> Tensor:
    if functions is None or q is None:
        return like.new_ones(1, 1)
    return functions(q.norm(dim=-1))


def harmonic_scale(kernel: _Elementary, degree: int) -> float:
    """Factor from component norm to the kernel's."""
    return 1.0 if kernel.normalization == "component" else 1.0 / sqrt(2 * degree + 1)


def p_window(kernel: _Elementary) -> bool:
    """Whether the kernel is constant over its window (`QSpace`)."""
    return isinstance(kernel, QSpace)
