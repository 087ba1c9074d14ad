"""Kernels of `PQConv3d` as values: how the map between two samples depends on their offsets in p- and q-space.

p is the voxel offset input - output in half kernel widths, dq = q_out / |q_out| - q_in / |q_in| the difference of the
gradient directions (of the q-vectors themselves with unit_q_difference=False), Y spherical harmonics, R the product of
the radial functions of |p|, |q_out| and |q_in|. Müller et al. 2021, arXiv:2102.06942.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dmri_monai.equivariant.kernel.radial import Gaussian, Radial
from dmri_monai.equivariant.kernel.steerable_kernel import ZeroOffset, filter_degrees

if TYPE_CHECKING:
    from e3nn.o3 import Irrep

__all__ = ["Concat", "Kernel", "PQDiff", "PQTensorProduct", "PSpace", "QSpace", "Sum"]

Filters = Mapping[tuple[int, int], Sequence[int]]
Rule = Literal["TP±1", "TP-vec"] | Mapping[int, Sequence[tuple[int, int]]]
TP_VEC: dict[int, list[tuple[int, int]]] = {0: [(0, 0)], 1: [(0, 1), (1, 0), (1, 1)], 2: [(2, 2)]}


class Kernel:
    """What `PQConv3d` accepts as `kernel`."""


@dataclass(frozen=True)
class _Elementary(Kernel):
    """Options all elementary kernels share.

    l_max: highest degree of the filters; None takes all.  filters: the degrees themselves, {(l_in, l_out): [l_f, ...]}.
    p_radial, q_radial: radial bases of |p| and of both |q|; None is Gaussian with (k + 1) // 2 and 3 centres.
    zero_offset: where an offset has no direction, 'linear' puts a plain linear map between equal irreps there, 'basis'
    keeps the degree-0 part of the basis.  normalization: of Y, 'component' |Y|² = 2l+1, 'norm' |Y| = 1.
    unit_q_difference: False takes dq = q_out - q_in.
    """

    l_max: int | None = None
    filters: Filters | None = None
    p_radial: Radial = Gaussian()
    q_radial: Radial = Gaussian()
    zero_offset: ZeroOffset = "linear"
    normalization: Literal["component", "norm"] = "component"
    unit_q_difference: bool = True

    def __post_init__(self) -> None:
        if self.zero_offset not in ("linear", "basis"):
            raise ValueError(f"zero_offset must be 'linear' or 'basis', got {self.zero_offset!r}")
        if self.normalization not in ("component", "norm"):
            raise ValueError(f"normalization must be 'component' or 'norm', got {self.normalization!r}")

    def degrees(self, ir_in: Irrep, ir_out: Irrep, parity: bool | None) -> list[int]:
        """Filter degrees from `ir_in` to `ir_out`; parity None leaves the letters e and o out of it."""
        degrees = filter_degrees(ir_in, ir_out, l_max=self.l_max, parity=bool(parity))
        if self.filters is None:
            return degrees
        chosen = self.filters.get((ir_in.l, ir_out.l), ())
        return [degree for degree in degrees if degree in chosen]


@dataclass(frozen=True)
class PSpace(_Elementary):
    """phi(|p|) Y(p): the same spatial kernel for every pair of samples, so every q_out gets the same output."""


@dataclass(frozen=True)
class QSpace(_Elementary):
    """phi(|q_out|) phi(|q_in|) Y(dq): constant over the voxels of the kernel window."""


@dataclass(frozen=True)
class PQDiff(_Elementary):
    """R Y(p - dq): one offset in the joint space. It does not factorise over p and q."""


@dataclass(frozen=True)
class PQTensorProduct(_Elementary):
    """R sum w3j(l, lq, lp) Y_lq(dq) Y_lp(p): coupled harmonics of both spaces.

    rule: which (lq, lp) make a filter of degree l. 'TP±1': all with |lq - l|, |lp - l| <= 1 and the triangle rule;
    'TP-vec': {0: [(0, 0)], 1: [(0, 1), (1, 0), (1, 1)], 2: [(2, 2)]}; or a mapping of that form.
    """

    rule: Rule = "TP±1"

    def couplings(self, degree: int) -> list[tuple[int, int]]:
        """The (lq, lp) of a filter of `degree`, in order."""
        if isinstance(self.rule, Mapping):
            return [tuple(pair) for pair in self.rule.get(degree, ())]  # type: ignore[misc]
        if self.rule == "TP-vec":
            return TP_VEC.get(degree, [])
        around = range(max(degree - 1, 0), degree + 2)
        return [(lq, lp) for lq in around for lp in around if abs(lq - lp) <= degree <= lq + lp]

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.rule, str) and self.rule not in ("TP±1", "TP-vec"):
            raise ValueError(f"rule must be 'TP±1', 'TP-vec' or a mapping, got {self.rule!r}")
        for degree in self.rule if isinstance(self.rule, Mapping) else ():
            for lq, lp in self.couplings(degree):
                if not abs(lq - lp) <= degree <= lq + lp:
                    raise ValueError(f"rule: lq {lq} and lp {lp} do not couple to degree {degree}")


class Sum(Kernel):
    """The sum of kernels, each with weights of its own: Sum(PQDiff(l_max=2), PSpace(l_max=2))."""

    def __init__(self, *terms: Kernel, kernels: Sequence[Kernel] = ()) -> None:
        self.terms = (*terms, *kernels)
        if not self.terms:
            raise ValueError("Sum needs at least one kernel, got 0")

    def __repr__(self) -> str:
        return f"Sum({', '.join(map(repr, self.terms))})"


class Concat(Kernel):
    """Output channels shared out among kernels: Concat((PQDiff(), "5x0e+2x1o"), (PSpace(), "5x0e+3x1o")).

    The irreps of the parts add up to the layer's; among the channels of one irrep those of the first part come first.
    """

    def __init__(self, *parts: tuple[Kernel, str], kernels: Sequence[tuple[Kernel, str]] = ()) -> None:
        self.parts = tuple((kernel, irreps) for kernel, irreps in (*parts, *kernels))
        if not self.parts:
            raise ValueError("Concat needs at least one part, got 0")

    def __repr__(self) -> str:
        return f"Concat({', '.join(map(repr, self.parts))})"
