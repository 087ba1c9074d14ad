"""Kernels that factorise over p- and q-space, applied one space after the other: `PQTensorProduct` and `QSpace`."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.kernel.radial import RadialFunctions
from dmri_monai.equivariant.kernel.voxel_grid import kernel_offsets
from dmri_monai.equivariant.pq.contraction.dense import DENSE
from dmri_monai.equivariant.pq.contraction.factors import Factors, Layout
from dmri_monai.equivariant.pq.contraction.interface import ConvOptions, KernelContext, Operator, Sizes
from dmri_monai.equivariant.pq.contraction.p_basis import P_BASIS
from dmri_monai.equivariant.pq.contraction.p_last import P_LAST
from dmri_monai.equivariant.pq.contraction.paths import (
    PairPaths,
    PFunctions,
    QRadials,
    coupling_constants,
    filter_paths,
    harmonic_scale,
    linear_map,
    linear_pairs,
    p_window,
    shape_of,
)
from dmri_monai.equivariant.pq.kernels import _Elementary
from dmri_monai.equivariant.pq.qvectors import direction_functions
from dmri_monai.so3 import Constants, harmonic_couplings, spherical_harmonics

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["STRATEGIES", "FactorisedKernel", "costs"]

STRATEGIES = {"dense": DENSE, "p_basis": P_BASIS, "p_last": P_LAST}


def costs(layout: Layout, sizes: Sizes) -> dict[str, float]:
    """Multiplications per voxel of the input that every strategy takes, weighted by how well they run."""
    return {name: strategy.cost(layout, sizes) for name, strategy in STRATEGIES.items()}


class _Prepared(NamedTuple):
    """Name of the strategy, and what it prepared."""

    strategy: str
    arrays: Any


class FactorisedKernel(Operator):
    """Operator of a factorising kernel. x (N, dim_in, Q_in, X, Y, Z) -> (N, dim_out, Q_out, X', Y', Z').

    `weight` holds, per pair of irreps (out-major) and path, an array (p-radial, q_out-radial, q_in-radial, channel out,
    channel in); `linear` the plain map used where an offset has no direction.
    """

    def __init__(
        self, kernel: _Elementary, irreps_in: Irreps, irreps_out: Irreps, context: KernelContext
    ) -> None:
        super().__init__()
        self.context, self.window = context, p_window(kernel)
        self.masked, self.unit = kernel.zero_offset == "linear", kernel.unit_q_difference
        self.q_radials = QRadials(kernel, context)
        p_radial = kernel.p_radial.resolved((context.kernel_size + 1) // 2)
        self.p_radial = None if self.window else RadialFunctions(p_radial)
        self.layout = self._init_layout(kernel, irreps_in, irreps_out)
        self.constants = Constants(**self._init_constants(kernel, irreps_in, irreps_out))
        self.shapes = [
            (self.layout.n_p, self.layout.n_o, self.layout.n_i, pair.mul_out, pair.mul_in)
            for pair in self.layout.pairs
            for _ in pair.paths
        ]
        self.sizes = [torch.Size(shape).numel() for shape in self.shapes]
        self.weight = nn.Parameter(torch.empty(sum(self.sizes)))
        count = sum(irreps_in[i].mul * irreps_out[o].mul for i, o in self.layout.linear)
        self.linear = nn.Parameter(torch.empty(count)) if self.masked else None
        self.reset_parameters()

    def _init_layout(self, kernel: _Elementary, irreps_in: Irreps, irreps_out: Irreps) -> Layout:
        pairs = []
        for o, (mul_out, ir_out) in enumerate(irreps_out):
            for i, (mul_in, ir_in) in enumerate(irreps_in):
                paths = tuple(filter_paths(kernel, ir_in, ir_out, self.context))
                keys = tuple(f"out_{ir_out}_in_{ir_in}_l{p.degree}_q{p.lq}_p{p.lp}" for p in paths)
                pairs.append(PairPaths(o, i, paths, keys, mul_out, mul_in, ir_out.dim, ir_in.dim))
        return Layout(
            tuple(pairs),
            shape_of(irreps_in),
            shape_of(irreps_out),
            tuple(linear_pairs(irreps_in, irreps_out, self.context)) if self.masked else (),
            1 if self.p_radial is None else self.p_radial.n_out,
            self.q_radials.n_out,
            self.q_radials.n_in,
            self.window,
            self.context.kernel_size,
        )

    def _init_constants(
        self, kernel: _Elementary, irreps_in: Irreps, irreps_out: Irreps
    ) -> dict[str, Tensor]:
        tensors = {"offsets": kernel_offsets(self.context.kernel_size, self.context.spacing)}
        for pair in self.layout.pairs:
            for key, path in zip(pair.keys, pair.paths, strict=True):
                scale = harmonic_scale(kernel, path.lp) * harmonic_scale(kernel, path.lq)
                coupling = coupling_constants(irreps_in[pair.i].ir, irreps_out[pair.o].ir, path)
                tensors[key] = coupling * scale
        self.l_max = max([*self.layout.q_degrees, *self.layout.p_degrees], default=0)
        climbs = {f"climb_{index}": c for index, c in enumerate(harmonic_couplings(self.l_max))}
        return {**tensors, **climbs}

    def reaches(self, o: int) -> bool:
        """Whether any input irrep is carried to output entry `o`."""
        return any(pair.paths for pair in self.layout.pairs if pair.o == o) or any(
            p == o for _, p in self.layout.linear
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights for output of about unit variance from input of unit variance that is smooth over q."""
        p_energy = self._p_functions(None).radial.square().sum().item()
        energy = p_energy * self.q_radials.energy(self.constants.offsets)
        shape_in, parts = self.layout.shape_in, list(self.weight.split(self.sizes))
        for pair in self.layout.pairs:
            row = [p for p in self.layout.pairs if p.o == pair.o]
            fan = sum(len(p.paths) * p.mul_in for p in row)
            fan += sum(shape_in[i][0] for i, o in self.layout.linear if o == pair.o)
            for _ in pair.paths:
                parts.pop(0).normal_(0.0, 1 / sqrt(fan * energy))
        if self.linear is not None:
            self.linear.normal_(0.0, 1 / sqrt(2 * max(1, sum(m for m, _ in shape_in))))

    def _couplings(self) -> list[Tensor]:
        return [getattr(self.constants, f"climb_{index}") for index in range(self.l_max)]

    def _p_functions(self, offsets: Tensor | None) -> PFunctions:
        """Functions of the voxel offsets (P, 3); None is the kernel's own grid."""
        offsets = self.constants.offsets if offsets is None else offsets
        lengths = offsets.norm(dim=-1)
        radial = lengths.new_ones(len(lengths), 1) if self.p_radial is None else self.p_radial(lengths)
        at_zero = (lengths == 0).to(lengths.dtype)
        harmonics = spherical_harmonics(offsets, self.l_max, self._couplings())
        if self.masked and not self.window:
            harmonics = [h * (1 - at_zero).unsqueeze(-1) for h in harmonics]
        return PFunctions(radial, harmonics, at_zero)

    def _q_functions(self, q_out: Tensor | None, q_in: Tensor | None) -> tuple[dict[int, Tensor], Tensor]:
        """{lq: Y_lq(dq) (..., Q_out, Q_in, 2lq+1)}, and where dq = 0."""
        if q_out is None and q_in is None:
            ones = self.constants.offsets.new_ones(1, 1)
            return {0: ones.unsqueeze(-1)}, torch.zeros_like(ones)
        degrees = self.layout.q_degrees
        harmonics, same = direction_functions(
            q_out,
            q_in,
            self._couplings(),
            l_max=max(degrees, default=0),
            unit=self.unit,
            antipodal=self.context.antipodal,
            mask_zero=self.masked,
        )
        return {lq: harmonics[lq] for lq in degrees}, same

    def _factors(self, q_out: Tensor | None, q_in: Tensor | None, offsets: Tensor | None = None) -> Factors:
        """Values of all factors, in at least float32."""
        outer, inner = self.q_radials(q_out, q_in, self.constants.offsets)
        harmonics, same = self._q_functions(q_out, q_in)
        p, layout = self._p_functions(offsets), self.layout
        dtype = p.radial.dtype
        flat = zip(self.weight.to(dtype).split(self.sizes), self.shapes, strict=True)
        parts = [part.view(shape) for part, shape in flat]
        weights = [[parts.pop(0) for _ in pair.paths] for pair in layout.pairs]
        keys = {key for pair in layout.pairs for key in pair.keys}
        couplings = {key: getattr(self.constants, key).to(dtype) for key in sorted(keys)}
        linear = None
        if self.linear is not None:
            linear = linear_map(self.linear.to(dtype), layout.shape_in, layout.shape_out, list(layout.linear))
        return Factors(layout, outer, inner, harmonics, same, p, weights, couplings, linear)

    def dense(self, q_out: Tensor | None, q_in: Tensor | None, offsets: Tensor | None = None) -> Tensor:
        """(..., dim_out, Q_out, dim_in, Q_in, P) whole kernel, at the voxels of the kernel or at any `offsets`."""
        full: Tensor = DENSE.prepare(self._factors(q_out, q_in, offsets))
        return full

    def _chosen(self, q_out: Tensor | None, q_in: Tensor | None, x: Tensor, options: ConvOptions) -> str:
        """The strategy asked for, or the cheapest where it is left open or not one of these."""
        if options.strategy in STRATEGIES:
            return options.strategy
        n_out, n_in = (1 if q is None else q.shape[-2] for q in (q_out, q_in))
        voxels, shrink = x.shape[3:].numel(), options.shrink(x.shape[3:], self.context.kernel_size)
        found = costs(self.layout, Sizes(n_out, n_in, voxels, shrink, x.device.type == "cpu"))
        return min(found, key=found.__getitem__)

    def prepare(
        self, q_out: Tensor | None, q_in: Tensor | None, x: Tensor, options: ConvOptions
    ) -> _Prepared:
        strategy = self._chosen(q_out, q_in, x, options)
        return _Prepared(strategy, STRATEGIES[strategy].prepare(self._factors(q_out, q_in)))

    def contract(self, x: Tensor, prepared: _Prepared, options: ConvOptions) -> Tensor:
        return STRATEGIES[prepared.strategy].contract(x, prepared.arrays, self.layout, options)
