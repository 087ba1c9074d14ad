"""Activations that commute with rotations: scalars are activated, everything else is scaled by scalars."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmri_monai.so3 import Block, as_irreps, blocks_of, channels_of, check_channels

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["Gate", "NormActivation", "activation_function", "gate_count"]

Activation = str | Callable[[Tensor], Tensor]
NAMED: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "swish": functional.silu,
    "relu": functional.relu,
    "leakyrelu": functional.leaky_relu,
    "gelu": functional.gelu,
    "elu": functional.elu,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": nn.Identity(),
}
ODD = ("tanh", "identity")


def activation_function(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function behind a name (`silu`, `relu`, ...), or the callable itself."""
    if callable(activation):
        return activation
    if activation.lower() not in NAMED:
        raise ValueError(f"activation {activation!r} is none of {sorted(NAMED)}")
    return NAMED[activation.lower()]


def gate_count(irreps: Irreps, odd: str = "gate") -> int:
    """How many channels of `irreps` need a gate: all with l >= 1, and `0o` unless it has an odd activation."""
    return sum(block.multiplicity for block in blocks_of(irreps) if _is_gated(block, odd))


def _is_gated(block: Block, odd: str) -> bool:
    return block.dim > 1 or (not block.even and odd == "gate")


class Gate(nn.Module):
    """Scalars `0e` pass through `activation`; every other channel is multiplied by the sigmoid of one extra scalar.

    Input: (N, irreps_in.dim, ...) with `irreps_in` = `irreps` followed by one `0e` gate per gated channel.
    Output: (N, irreps.dim, ...).  odd: 'gate', or an odd activation ('tanh', 'identity') for `0o`, whose sign flips
    under reflections and which therefore cannot take silu or relu.
    """

    def __init__(
        self,
        irreps: str | Irreps,
        *,
        activation: Activation = "silu",
        odd: str = "gate",
        gate: Activation = "sigmoid",
    ) -> None:
        super().__init__()
        if odd != "gate" and odd not in ODD:
            raise ValueError(f"odd must be 'gate' or an odd activation {ODD}, got {odd!r}")
        self.irreps_out = as_irreps(irreps)
        self.odd, self.gates = odd, gate_count(self.irreps_out, odd)
        self.irreps_in = as_irreps(self.irreps_out + type(self.irreps_out)(f"{self.gates}x0e"))
        self.blocks, self.expected = blocks_of(self.irreps_out), channels_of(self.irreps_in)
        self.sizes = [*(block.multiplicity * block.dim for block in self.blocks), self.gates]
        self.gated = [block.multiplicity * _is_gated(block, odd) for block in self.blocks]
        self.activation, self.gate = activation_function(activation), activation_function(gate)

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}"

    def forward(self, x: Tensor) -> Tensor:
        check_channels(x, self.expected, range(2, 7), "Gate")
        *features, gates = x.split(self.sizes, dim=1)
        factors = self.gate(gates).split(self.gated, dim=1)
        out = [
            self._activated(feature, block) if factor.shape[1] == 0 else _scale(feature, factor, block.dim)
            for feature, factor, block in zip(features, factors, self.blocks, strict=True)
        ]
        return torch.cat(out, dim=1)

    def scaled(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """The gate of a x + b without an array of it; a, b (N or 1, irreps_in.dim, 1, ...), b of scalars only.

        Components of one channel share their factor, so that it multiplies the gate instead of the field.
        """
        *features, gates = x.split(self.sizes, dim=1)
        *scales, gate_scale = a.split(self.sizes, dim=1)
        *shifts, gate_shift = b.split(self.sizes, dim=1)
        factors = self.gate(torch.addcmul(gate_shift, gates, gate_scale)).split(self.gated, dim=1)
        parts = zip(features, factors, scales, shifts, self.blocks, strict=True)
        out = [
            self._activated(torch.addcmul(shift, feature, scale), block)
            if factor.shape[1] == 0
            else _scale(feature, factor * scale[:, :: block.dim], block.dim)
            for feature, factor, scale, shift, block in parts
        ]
        return torch.cat(out, dim=1)

    def _activated(self, feature: Tensor, block: Block) -> Tensor:
        return self.activation(feature) if block.even else NAMED[self.odd](feature)


def _scale(feature: Tensor, factor: Tensor, dim: int) -> Tensor:
    """Multiply channels of `dim` components (N, mul * dim, ...) by one factor each (N, mul, ...)."""
    if dim == 1:
        return feature * factor
    return (feature.unflatten(1, (factor.shape[1], dim)) * factor.unsqueeze(2)).flatten(1, 2)


class NormActivation(nn.Module):
    """Scalars `0e` pass through `activation`; other channels v become v / |v| · norm_activation(|v| + bias).

    (N, irreps.dim, ...) -> the same shape.  |v| is sqrt(|v|² + eps²), so that gradients exist at zero.
    """

    def __init__(
        self,
        irreps: str | Irreps,
        *,
        activation: Activation = "silu",
        norm_activation: Activation = "relu",
        bias: bool = True,
        eps: float = 1e-4,
    ) -> None:
        super().__init__()
        self.irreps_in = self.irreps_out = as_irreps(irreps)
        self.activation = activation_function(activation)
        self.norm_activation = activation_function(norm_activation)
        self.blocks, self.expected = blocks_of(self.irreps_in), channels_of(self.irreps_in)
        self.eps = eps
        self.bias = nn.Parameter(torch.zeros(gate_count(self.irreps_in))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        check_channels(x, self.expected, range(2, 7), "NormActivation")
        start, out = 0, []
        features = x.split([block.multiplicity * block.dim for block in self.blocks], dim=1)
        for block, feature in zip(self.blocks, features, strict=True):
            mul = block.multiplicity
            if block.scalar:
                out.append(self.activation(feature))
                continue
            wide = feature.to(torch.promote_types(x.dtype, torch.float32))  # eps² vanishes in float16
            norm = (wide.unflatten(1, (mul, block.dim)).square().sum(2) + self.eps**2).sqrt()
            factor = self.norm_activation(self._shift(norm, start)) / norm
            out.append(_scale(feature, factor.to(x.dtype), block.dim))
            start += mul
        return torch.cat(out, dim=1)

    def _shift(self, norm: Tensor, start: int) -> Tensor:
        if self.bias is None:
            return norm
        bias = self.bias[start : start + norm.shape[1]].to(norm.dtype)
        return norm + bias.view(1, -1, *[1] * (norm.ndim - 2))
