"""Blocks made of the layers: convolution + norm + gate, residual block, dropout, and the bridge to ordinary layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.conv import SteerableConv3d
from dmri_monai.equivariant.gate import Gate, NormActivation
from dmri_monai.equivariant.norm import EquivariantBatchNorm, EquivariantInstanceNorm, normalised_gate
from dmri_monai.so3 import Block, as_irreps, blocks_of, channels_of, check_channels

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["EquivariantDropout", "Invariants", "SteerableBlock", "SteerableResidualBlock"]

Choice = str | tuple[str, dict[str, Any]]
ACTS: dict[str, type[nn.Module]] = {"gate": Gate, "norm": NormActivation}
NORMS: dict[str, type[nn.Module]] = {
    "equivariant_instance": EquivariantInstanceNorm,
    "equivariant_batch": EquivariantBatchNorm,
}


class EquivariantDropout(nn.Module):
    """Drop whole channels, all components and voxels together, with probability `p`; the rest is scaled by 1/(1-p).

    (N, irreps.dim, ...) -> the same shape; the identity in eval mode.
    """

    channel_of: Tensor

    def __init__(self, irreps: str | Irreps, *, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"EquivariantDropout: p must lie in [0, 1), got {p}")
        self.irreps_in = self.irreps_out = as_irreps(irreps)
        self.p, self.expected = p, channels_of(self.irreps_in)
        self.channels = self.irreps_in.num_irreps
        dims = torch.tensor([ir.dim for mul, ir in self.irreps_in for _ in range(mul)])
        channel_of = torch.arange(len(dims)).repeat_interleave(dims)
        self.register_buffer("channel_of", channel_of, persistent=False)

    def extra_repr(self) -> str:
        return f"{self.irreps_in}, p={self.p}"

    def forward(self, x: Tensor) -> Tensor:
        check_channels(x, self.expected, range(2, 7), "EquivariantDropout")
        if not self.training or self.p == 0:
            return x
        keep = torch.rand(len(x), self.channels, device=x.device) >= self.p
        factor = keep.index_select(1, self.channel_of).to(x.dtype) / (1 - self.p)
        return x * factor.view(*factor.shape, *[1] * (x.ndim - 2))


class Invariants(nn.Module):
    """One invariant per channel: `0e` as it is, the Euclidean norm of every other channel (|x| for `0o`).

    (N, irreps.dim, ...) -> (N, irreps.num_irreps, ...).  After it 1x1x1 and pointwise layers keep the network
    equivariant; an ordinary kernel larger than one voxel does not.
    """

    def __init__(self, irreps: str | Irreps, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.irreps_in = as_irreps(irreps)
        self.irreps_out = as_irreps(f"{self.irreps_in.num_irreps}x0e")
        self.blocks, self.expected = blocks_of(self.irreps_in), channels_of(self.irreps_in)
        self.eps = eps

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}"

    def forward(self, x: Tensor) -> Tensor:
        check_channels(x, self.expected, range(2, 7), "Invariants")
        parts = x.split([block.multiplicity * block.dim for block in self.blocks], dim=1)
        return torch.cat([self._of(p, block) for p, block in zip(parts, self.blocks, strict=True)], dim=1)

    def _of(self, part: Tensor, block: Block) -> Tensor:
        if block.scalar:
            return part
        wide = part.to(torch.promote_types(part.dtype, torch.float32))  # eps² vanishes in float16
        return (wide.unflatten(1, block[:2]).square().sum(2) + self.eps**2).sqrt().to(part.dtype)


class SteerableBlock(nn.Sequential):
    """Steerable convolution, then norm (N), dropout (D) and activation (A) in `adn_ordering`.

    The arguments are those of `monai.networks.blocks.Convolution`, with irreps for the channels.  act: 'gate' (the
    convolution then also emits the gates, and the norm covers them), 'norm', or a pair with keyword arguments; norm:
    'equivariant_instance' or 'equivariant_batch'.  kernel: further keyword arguments of `SteerableConv3d` (radial,
    spacing, parity, l_max, zero_offset).  (N, in_channels.dim, X, Y, Z) -> (N, out_channels.dim, X', Y', Z').
    """

    def __init__(  # noqa: PLR0913  the arguments of monai.networks.blocks.Convolution
        self,
        spatial_dims: int,
        in_channels: str | Irreps,
        out_channels: str | Irreps,
        strides: Sequence[int] | int = 1,
        kernel_size: Sequence[int] | int = 3,
        adn_ordering: str = "NDA",
        act: Choice | None = "gate",
        norm: Choice | None = "equivariant_instance",
        dropout: float | None = None,
        dropout_dim: int | None = 1,
        dilation: Sequence[int] | int = 1,
        groups: int = 1,
        bias: bool = True,
        conv_only: bool = False,
        is_transposed: bool = False,
        padding: int | str | None = None,
        output_padding: int | None = None,
        *,
        kernel: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims != 3:
            raise ValueError(f"SteerableBlock: spatial_dims must be 3, got {spatial_dims}")
        self.irreps_in, self.irreps_out = as_irreps(in_channels), as_irreps(out_channels)
        acts = not conv_only and "A" in adn_ordering.upper()
        activation = _make(act, ACTS, "act", self.irreps_out) if acts else None
        emitted = activation.irreps_in if activation is not None else self.irreps_out
        self.add_module(
            "conv",
            SteerableConv3d(
                self.irreps_in,
                emitted,
                kernel_size,
                strides,
                dilation,
                "same" if padding is None else padding,
                groups,
                bias,
                is_transposed,
                output_padding=output_padding or 0,
                **(kernel or {}),
            ),
        )
        if conv_only:
            return
        self._add_adn(adn_ordering, activation, norm, dropout, emitted)

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if layers and _fuse(layer, layers[0]):
                x = normalised_gate(cast("EquivariantInstanceNorm", layer), cast("Gate", layers.pop(0)), x)
            else:
                x = layer(x)
        return x

    def _add_adn(
        self, ordering: str, activation, norm: Choice | None, dropout: float | None, emitted: Irreps
    ) -> None:
        if sorted(ordering.upper()) != sorted(set(ordering.upper()) & set("NDA")):
            raise ValueError(f"adn_ordering must consist of N, D and A, each at most once, got {ordering!r}")
        irreps = emitted
        for letter in ordering.upper():
            if letter == "N" and norm is not None:
                self.add_module("norm", _make(norm, NORMS, "norm", irreps))
            elif letter == "D" and dropout:
                self.add_module("dropout", EquivariantDropout(irreps, p=dropout))
            elif letter == "A" and activation is not None:
                self.add_module("act", activation)
                irreps = self.irreps_out


def _fuse(first: nn.Module, second: nn.Module) -> bool:
    """Whether the two are a norm and its gate, and nobody listens to what passes between them."""
    heard = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in (first, second))
    return isinstance(first, tuple(NORMS.values())) and isinstance(second, Gate) and not heard


def _make(
    choice: Choice | None, known: dict[str, type[nn.Module]], role: str, irreps: Irreps
) -> nn.Module | None:
    if choice is None:
        return None
    name, arguments = (choice, {}) if isinstance(choice, str) else choice
    if name.lower() not in known:
        raise ValueError(f"{role} {name!r} is none of {sorted(known)}")
    return known[name.lower()](irreps, **{k: v for k, v in arguments.items() if k != "irreps"})


class SteerableResidualBlock(nn.Module):
    """`subunits` steerable blocks beside a shortcut: the identity, or a steerable convolution where the field changes.

    (N, in_channels.dim, X, Y, Z) -> (N, out_channels.dim, X', Y', Z').  The first subunit has the stride; a strided
    shortcut has the kernel size of the body, because a 1x1x1 kernel at stride 2 fits odd sizes only.
    """

    def __init__(
        self,
        in_channels: str | Irreps,
        out_channels: str | Irreps,
        strides: int = 1,
        kernel_size: int = 3,
        subunits: int = 2,
        **block: Any,
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = as_irreps(in_channels), as_irreps(out_channels)
        units = []
        for index in range(subunits):
            irreps = self.irreps_in if index == 0 else self.irreps_out
            stride = strides if index == 0 else 1
            units.append(
                SteerableBlock(3, irreps, self.irreps_out, stride, _body_size(kernel_size, index), **block)
            )
        self.body = nn.Sequential(*units)
        same = strides == 1 and self.irreps_in == self.irreps_out
        known = {ir for _, ir in self.irreps_in}
        pointwise = strides == 1 and all(
            ir in known for _, ir in self.irreps_out
        )  # 1x1x1 maps equal irreps only
        size = 1 if pointwise else kernel_size
        self.shortcut = (
            nn.Identity()
            if same
            else SteerableConv3d(
                self.irreps_in, self.irreps_out, size, strides, **(block.get("kernel") or {})
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def _body_size(kernel_size: int, index: int) -> int:
    """Later subunits run at stride 1, where an even kernel would move the grid by half a voxel."""
    return kernel_size if index == 0 or kernel_size % 2 else kernel_size - 1
