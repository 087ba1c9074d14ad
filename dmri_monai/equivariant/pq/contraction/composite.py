"""Kernels made of others and `PSpace`, and which operator each kernel becomes inside a `PQConv3d`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.kernel.steerable_kernel import PSpaceFunctions, SteerableKernel
from dmri_monai.equivariant.pq.contraction.convolutions import plain_conv
from dmri_monai.equivariant.pq.contraction.difference import DifferenceKernel
from dmri_monai.equivariant.pq.contraction.factorised import FactorisedKernel
from dmri_monai.equivariant.pq.contraction.interface import ConvOptions, KernelContext, Operator
from dmri_monai.equivariant.pq.kernels import Concat, Kernel, PQDiff, PQTensorProduct, PSpace, QSpace, Sum
from dmri_monai.so3 import as_irreps

if TYPE_CHECKING:
    from e3nn.o3 import Irreps
    from e3nn.o3._irreps import _MulIr

__all__ = ["build_operator"]


class SharedKernel(Operator):
    """Operator of `PSpace`: one steerable convolution of the sum over q_in, repeated for every q_out."""

    def __init__(self, kernel: PSpace, irreps_in: Irreps, irreps_out: Irreps, context: KernelContext) -> None:
        super().__init__()
        self.context = context
        radial = kernel.p_radial.resolved((context.kernel_size + 1) // 2)
        functions = PSpaceFunctions(radial, kernel.l_max, context.parity, kernel.zero_offset, kernel.filters)
        self.kernel = SteerableKernel(irreps_in, irreps_out, context.kernel_size, functions, context.spacing)

    def reaches(self, o: int) -> bool:
        """Whether any input irrep is carried to output entry `o`."""
        return self.kernel.reaches(o)

    def dense(self, q_out: Tensor | None, q_in: Tensor | None, offsets: Tensor | None = None) -> Tensor:
        n_out, n_in = (1 if q is None else q.shape[-2] for q in (q_out, q_in))
        kernel = self.kernel() if offsets is None else self.kernel.at(offsets)
        return kernel[:, None, :, None].expand(-1, n_out, -1, n_in, -1)

    def prepare(
        self, q_out: Tensor | None, q_in: Tensor | None, x: Tensor, options: ConvOptions
    ) -> tuple[Tensor, int]:
        return self.kernel(), 1 if q_out is None else q_out.shape[-2]

    def contract(self, x: Tensor, prepared: tuple[Tensor, int], options: ConvOptions) -> Tensor:
        kernel, n_out = prepared
        return plain_conv(x, kernel, options).expand(-1, -1, n_out, -1, -1, -1)


def _prepare_terms(
    self: SumOperator | ConcatOperator,
    q_out: Tensor | None,
    q_in: Tensor | None,
    x: Tensor,
    options: ConvOptions,
) -> list[Any]:
    """`prepare` of an operator of several terms."""
    return [term.prepare(q_out, q_in, x, options) for term in _operators(self.terms)]


class SumOperator(Operator):
    """Operator of `Sum`."""

    def __init__(self, kernel: Sum, irreps_in: Irreps, irreps_out: Irreps, context: KernelContext) -> None:
        super().__init__()
        self.terms = nn.ModuleList(
            build_operator(term, irreps_in, irreps_out, context) for term in kernel.terms
        )

    def reaches(self, o: int) -> bool:
        """Whether any term carries any input irrep to output entry `o`."""
        return any(term.reaches(o) for term in _operators(self.terms))

    def dense(self, q_out: Tensor | None, q_in: Tensor | None, offsets: Tensor | None = None) -> Tensor:
        return torch.stack([term.dense(q_out, q_in, offsets) for term in _operators(self.terms)]).sum(0)

    prepare = _prepare_terms

    def contract(self, x: Tensor, prepared: list[Any], options: ConvOptions) -> Tensor:
        terms = zip(_operators(self.terms), prepared, strict=True)
        return reduce(torch.add, (term.contract(x, part, options) for term, part in terms))


class ConcatOperator(Operator):
    """Operator of `Concat`."""

    layout: Tensor

    def __init__(self, kernel: Concat, irreps_in: Irreps, irreps_out: Irreps, context: KernelContext) -> None:
        super().__init__()
        parts = [(part, as_irreps(irreps)) for part, irreps in kernel.parts]
        self.terms = nn.ModuleList(build_operator(part, irreps_in, irreps, context) for part, irreps in parts)
        joined = [entry for _, irreps in parts for entry in irreps]
        if _counts(joined) != _counts(irreps_out):
            raise ValueError(
                f"Concat: parts {[str(irreps) for _, irreps in parts]} do not add up to {irreps_out}"
            )
        for (part, irreps), term in zip(parts, _operators(self.terms), strict=True):
            for o, entry in enumerate(irreps):
                if not term.reaches(o):
                    raise ValueError(f"Concat: {part} carries none of {irreps_in} to {entry.ir}")
        self.register_buffer("layout", _concat_layout(joined, irreps_out), persistent=False)

    def reaches(self, o: int) -> bool:
        """Always: each part has checked its own outputs."""
        return True

    def dense(self, q_out: Tensor | None, q_in: Tensor | None, offsets: Tensor | None = None) -> Tensor:
        return torch.cat(
            [term.dense(q_out, q_in, offsets) for term in _operators(self.terms)], dim=-5
        ).index_select(-5, self.layout)

    prepare = _prepare_terms

    def contract(self, x: Tensor, prepared: list[Any], options: ConvOptions) -> Tensor:
        terms = zip(_operators(self.terms), prepared, strict=True)
        y = torch.cat([term.contract(x, part, options) for term, part in terms], dim=1)
        return y.index_select(1, self.layout)


def _operators(modules: nn.ModuleList) -> list[Operator]:
    return cast("list[Operator]", list(modules))


def _counts(entries: Iterable[_MulIr]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for mul, ir in entries:
        counts[str(ir)] = counts.get(str(ir), 0) + mul
    return counts


def _concat_layout(joined: Iterable[_MulIr], irreps_out: Irreps) -> Tensor:
    """For each output component, where it lies in the concatenation of the parts."""
    available: dict[str, list[int]] = {}
    start = 0
    for mul, ir in joined:
        available.setdefault(str(ir), []).extend(range(start, start + mul * ir.dim))
        start += mul * ir.dim
    layout = [available[str(ir)].pop(0) for mul, ir in irreps_out for _ in range(mul * ir.dim)]
    return torch.tensor(layout)


def build_operator(kernel: Kernel, irreps_in: Irreps, irreps_out: Irreps, context: KernelContext) -> Operator:
    """The module that applies `kernel`."""
    if isinstance(kernel, QSpace) and not (context.has_q_in or context.has_q_out):
        raise ValueError(
            "QSpace needs q-space on at least one side, this layer has q_in=False and q_out=False"
        )
    known = {
        PSpace: SharedKernel,
        QSpace: FactorisedKernel,
        PQTensorProduct: FactorisedKernel,
        PQDiff: DifferenceKernel,
        Sum: SumOperator,
        Concat: ConcatOperator,
    }
    if type(kernel) not in known:
        raise TypeError(
            f"kernel must be PSpace, QSpace, PQDiff, PQTensorProduct, Sum or Concat, got {kernel!r}"
        )
    return known[type(kernel)](kernel, irreps_in, irreps_out, context)
