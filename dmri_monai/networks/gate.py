"""The nonlinearity of `EquivariantUNet`: instance norm, invariants and gate from one pass over the field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmri_monai.equivariant import as_irreps
from dmri_monai.equivariant.representation import blocks_of

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
        scalars, *vectors = torch.split(x, [self.scalars, *(mul * dim for mul, dim in self.vectors)], dim=1)
        fields = [torch.unflatten(v, 1, shape) for v, shape in zip(vectors, self.vectors, strict=True)]
        lengths, scales = self._lengths(fields)
        mixed = self.mix(torch.cat([functional.instance_norm(scalars, eps=self.eps), *lengths], dim=1))
        activated, *gates = torch.split(mixed, [self.scalars, *(mul for mul, _ in self.vectors)], dim=1)
        gated = [
            (field * (gate.sigmoid() * scale).unsqueeze(2)).flatten(1, 2)
            for field, gate, scale in zip(fields, gates, scales, strict=True)
        ]
        return torch.cat([functional.silu(activated), *gated], dim=1)

    def _lengths(self, fields: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Lengths (N, mul, X, Y, Z) over their rms, and the factor (N, mul, 1, 1, 1) to unit-variance components."""
        lengths, scales = [], []
        for field in fields:
            power = field.to(torch.promote_types(field.dtype, torch.float32)).square().sum(2)
            inverse = torch.rsqrt(power.mean((2, 3, 4), keepdim=True) + self.eps)
            lengths.append((power * inverse.square() + LENGTH_EPS).sqrt().to(field.dtype))
            scales.append((inverse * field.shape[2] ** 0.5).to(field.dtype))
        return lengths, scales
