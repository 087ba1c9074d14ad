"""The nonlinearity of `EquivariantUNet`: instance norm, invariants and gate, computed together."""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dmri_monai.equivariant import as_irreps
from dmri_monai.equivariant.finite_values import is_recording
from dmri_monai.so3 import blocks_of

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["InvariantNormGate"]


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
        self.length_eps = 1e-6  # keeps the gradient of a length finite at zero
        self.multiplicities = [block.multiplicity for block in blocks]
        self.dims = [block.dim for block in blocks]
        self.sizes = [block.multiplicity * block.dim for block in blocks]
        channels = sum(self.multiplicities)
        self.mix = nn.Conv3d(channels, channels, 1)
        nn.init.normal_(self.mix.weight, 0.0, channels**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting() or is_recording():
            return self.composed(x)
        return self.fused(x)

    @torch.jit.unused
    def fused(self, x: Tensor) -> Tensor:
        """`forward` as one autograd operation."""
        weights = list(self.mix.parameters())
        learns = torch.is_grad_enabled() and any(value.requires_grad for value in (x, *weights))
        gated: Tensor = _Fused.apply(x, self, learns, *weights)  # type: ignore[no-untyped-call]
        return gated

    # what follows is also compiled by TorchScript, which knows neither unpacking nor comprehensions over two lists

    def composed(self, x: Tensor) -> Tensor:
        """`forward` in ordinary operations, for graphs that are recorded, exported or compiled."""
        fields = self.parts(x)
        controls = self.controls(
            fields[0], [_at_least_float32(field).square().sum(2) for field in fields[1:]]
        )
        gated = [controls[0]]
        for block in range(1, len(fields)):
            gated.append((fields[block] * controls[block].unsqueeze(2)).flatten(1, 2))
        return torch.cat(gated, dim=1)

    def parts(self, x: Tensor) -> list[Tensor]:
        """Views of the scalars (N, mul, X, Y, Z) and of every other block (N, mul, dim, X, Y, Z)."""
        parts = list(x.split(self.sizes, dim=1))
        for block in range(1, len(parts)):
            parts[block] = parts[block].unflatten(1, [self.multiplicities[block], self.dims[block]])
        return parts

    def controls(self, scalars: Tensor, powers: list[Tensor]) -> list[Tensor]:
        """The activated scalars, and every block's factors (N, mul, X, Y, Z), from the squared lengths `powers`."""
        inverses = [torch.rsqrt(power.mean((2, 3, 4), keepdim=True) + self.eps) for power in powers]
        invariants = [functional.instance_norm(scalars, eps=self.eps)]
        for block in range(len(powers)):
            lengths = (powers[block] * inverses[block].square() + self.length_eps).sqrt()
            invariants.append(lengths.to(scalars.dtype))
        controls = list(self.mix(torch.cat(invariants, dim=1)).split(self.multiplicities, dim=1))
        controls[0] = functional.silu(controls[0])
        for block in range(1, len(controls)):
            scale = inverses[block - 1] * self.dims[block] ** 0.5
            controls[block] = controls[block].sigmoid() * scale.to(controls[block].dtype)
        return controls


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
            first, *powers = (leaf.requires_grad_(differentiable) for leaf in leaves)
            controls = gate.controls(first, powers)
        activated, *factors = (control.detach() for control in controls)
        out = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, activated.dtype))
        target_scalars, *targets = gate.parts(out)
        target_scalars.copy_(activated)
        for target, field, factor in zip(targets, fields, factors, strict=True):
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
        learning = ctx.needs_input_grad[3:]  # weights may be frozen
        inputs = [*ctx.leaves, *compress(weights, learning)]
        grads = torch.autograd.grad(ctx.controls, inputs, inner, retain_graph=True, allow_unused=True)
        grad_x = torch.empty_like(x)
        first, *rest = ctx.gate.parts(grad_x)
        first.copy_(grads[0])
        blocks = zip(rest, grad_fields, fields, ctx.controls[1:], grads[1 : len(ctx.leaves)], strict=True)
        for target, g, field, factor, of_power in blocks:
            torch.mul(g, factor.detach().unsqueeze(2), out=target)
            target.addcmul_(field, of_power.to(field.dtype).unsqueeze(2), value=2)
        of_weights = iter(grads[len(ctx.leaves) :])
        return grad_x, None, None, *(next(of_weights) if learns else None for learns in learning)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the components of (N, mul, dim, X, Y, Z) products, without an array of them."""
    total = _at_least_float32(a[:, :, 0]) * _at_least_float32(b[:, :, 0])
    for component in range(1, a.shape[2]):
        total.addcmul_(_at_least_float32(a[:, :, component]), _at_least_float32(b[:, :, component]))
    return total
