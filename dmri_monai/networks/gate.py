"""The nonlinearity of `EquivariantUNet`: instance norm, invariants and gate, computed together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dmri_monai.equivariant import as_irreps
from dmri_monai.equivariant.representation import blocks_of
from dmri_monai.networks.checks import is_recording

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["InvariantNormGate"]

LENGTH_EPS = 1e-6  # keeps the gradient of a length finite at zero


class InvariantNormGate(nn.Module):
    """Instance norm, then scalars and gates that know the length of every vector at their voxel.

    (N, irreps.dim, X, Y, Z) -> the same shape.  With s the normalised `0e` channels and n_i = |v_i| / rms |v_i| one
    invariant per other channel, (s', g) = W (s, n) + c voxel by voxel; scalars become silu(s'), other channels
    v_i / rms · sigmoid(g_i).  Lengths must reach the scalars here: convolutions and gates alone carry nothing from
    l >= 1 to l = 0 where a field is constant, so that anisotropy inside white matter would stay invisible.

    irreps: all `0e` first.  The lengths also give the rms, and W emits the gates, so that the convolution before it
    needs no extra channels.
    """

    def __init__(self, irreps: str | Irreps, eps: float = 1e-5) -> None:
        super().__init__()
        blocks = blocks_of(as_irreps(irreps))
        if not blocks[0].scalar or any(block.scalar for block in blocks[1:]):
            raise ValueError(f"irreps {irreps} must begin with all their 0e channels")
        self.eps = eps
        self.scalars = blocks[0].multiplicity
        self.vectors = [(block.multiplicity, block.dim) for block in blocks[1:]]
        channels = sum(block.multiplicity for block in blocks)
        self.mix = nn.Conv3d(channels, channels, 1)
        nn.init.normal_(self.mix.weight, 0.0, channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        if is_recording():
            return self.composed(x)
        weights = self.mix.parameters()
        gated: Tensor = _Fused.apply(x, self, torch.is_grad_enabled(), *weights)  # type: ignore[no-untyped-call]
        return gated

    def composed(self, x: Tensor) -> Tensor:
        """`forward` in ordinary operations, for graphs that are recorded, exported or compiled."""
        scalars, *fields = self.parts(x)
        activated, *factors = self.controls(scalars, *(_at_least_float32(f).square().sum(2) for f in fields))
        gated = [
            (field * factor.unsqueeze(2)).flatten(1, 2) for field, factor in zip(fields, factors, strict=True)
        ]
        return torch.cat([activated, *gated], dim=1)

    def parts(self, x: Tensor) -> list[Tensor]:
        """Views of the scalars (N, mul, X, Y, Z) and of every other block (N, mul, dim, X, Y, Z)."""
        sizes = [self.scalars, *(mul * dim for mul, dim in self.vectors)]
        scalars, *blocks = torch.split(x, sizes, dim=1)
        shapes = zip(blocks, self.vectors, strict=True)
        return [scalars, *(torch.unflatten(block, 1, shape) for block, shape in shapes)]

    def controls(self, scalars: Tensor, *powers: Tensor) -> list[Tensor]:
        """The activated scalars, and every block's factors (N, mul, X, Y, Z), from the squared lengths `powers`."""
        inverses = [torch.rsqrt(power.mean((2, 3, 4), keepdim=True) + self.eps) for power in powers]
        lengths = [
            (power * inverse.square() + LENGTH_EPS).sqrt().to(scalars.dtype)
            for power, inverse in zip(powers, inverses, strict=True)
        ]
        mixed = self.mix(torch.cat([functional.instance_norm(scalars, eps=self.eps), *lengths], dim=1))
        activated, *gates = torch.split(mixed, [self.scalars, *(mul for mul, _ in self.vectors)], dim=1)
        scales = [i * dim**0.5 for i, (_, dim) in zip(inverses, self.vectors, strict=True)]
        factors = [g.sigmoid() * s.to(g.dtype) for g, s in zip(gates, scales, strict=True)]
        return [functional.silu(activated), *factors]


class _Fused(torch.autograd.Function):
    """`InvariantNormGate.composed` with one buffer for the output and one for the gradient.

    Only the scalars and the squared lengths, a fraction of the channels, go through autograd; what touches whole blocks
    is written here. Elementwise passes over a full-size field cost as much as a quarter of a convolution on CPU.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gate: InvariantNormGate, differentiable: bool, *weights: Tensor
    ) -> Tensor:
        scalars, *fields = gate.parts(x)
        leaves = [scalars.detach(), *(_dot(field, field) for field in fields)]
        with torch.set_grad_enabled(differentiable):
            controls = gate.controls(*(leaf.requires_grad_(differentiable) for leaf in leaves))
        activated, *factors = (control.detach() for control in controls)
        out = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, activated.dtype))
        first, *rest = gate.parts(out)
        first.copy_(activated)
        for target, field, factor in zip(rest, fields, factors, strict=True):
            torch.mul(field, factor.unsqueeze(2), out=target)
        if differentiable:
            ctx.gate, ctx.leaves, ctx.controls = gate, leaves, controls
            ctx.save_for_backward(x, *weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        (_, *fields), (grad_scalars, *grad_fields) = ctx.gate.parts(x), ctx.gate.parts(grad)
        pairs = zip(grad_fields, fields, ctx.controls[1:], strict=True)
        inner = [grad_scalars, *(_dot(g, field).to(factor.dtype) for g, field, factor in pairs)]
        inputs = [*ctx.leaves, *weights]
        grads = torch.autograd.grad(ctx.controls, inputs, inner, retain_graph=True, allow_unused=True)
        grad_x = torch.empty_like(x)
        first, *rest = ctx.gate.parts(grad_x)
        first.copy_(grads[0])
        blocks = zip(rest, grad_fields, fields, ctx.controls[1:], grads[1 : len(ctx.leaves)], strict=True)
        for target, g, field, factor, of_power in blocks:
            torch.mul(g, factor.detach().unsqueeze(2), out=target)
            target.addcmul_(field, of_power.to(field.dtype).unsqueeze(2), value=2)
        return grad_x, None, None, *grads[len(ctx.leaves) :]


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the components of (N, mul, dim, X, Y, Z) products, without an array of them."""
    total = _at_least_float32(a[:, :, 0]) * _at_least_float32(b[:, :, 0])
    for component in range(1, a.shape[2]):
        total.addcmul_(_at_least_float32(a[:, :, component]), _at_least_float32(b[:, :, component]))
    return total
