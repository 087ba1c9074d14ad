"""Normalisation of fields of irreps: scalars lose their mean and spread, other channels are divided by their RMS norm.

A norm computes one factor `a` and shift `b` per channel; `NormGate` applies them and the gate as one expression,
out = x[feature] · (a[feature] · sigmoid((a x + b)[gate])), whose bracket has one component per channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed.nn.functional as collective
from torch import Tensor, distributed, nn

from dmri_monai.equivariant.gate import Gate
from dmri_monai.so3 import Block, as_irreps, blocks_of, channels_of, check_channels

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["EquivariantBatchNorm", "EquivariantInstanceNorm", "NormGate", "normalised_gate"]


class _Layout(nn.Module):
    """Which channels are scalars with a mean, and which components belong together."""

    channel_of: Tensor
    scalar_channels: Tensor
    scalar_components: Tensor

    def __init__(self, irreps: Irreps) -> None:
        super().__init__()
        self.blocks = blocks_of(irreps)
        self.sizes = [block.multiplicity * block.dim for block in self.blocks]
        channel_of = torch.arange(irreps.num_irreps).repeat_interleave(
            torch.tensor([block.dim for block in self.blocks for _ in range(block.multiplicity)])
        )
        scalar = torch.tensor([block.scalar for block in self.blocks for _ in range(block.multiplicity)])
        self.n_scalars = int(scalar.sum())
        self.register_buffer("channel_of", channel_of, persistent=False)
        self.register_buffer("scalar_channels", scalar.nonzero().flatten(), persistent=False)
        self.register_buffer("scalar_components", scalar[channel_of].nonzero().flatten(), persistent=False)

    def parts(self, x: Tensor) -> list[tuple[Tensor, Block]]:
        """Every block of `x` (N, dim, ...), as a view (N, multiplicity, components, ...)."""
        pieces = zip(x.split(self.sizes, dim=1), self.blocks, strict=True)
        return [(piece.unflatten(1, block[:2]), block) for piece, block in pieces]

    def spread(self, scalars: Tensor, width: int, index: Tensor) -> Tensor:
        """(n, scalars) placed into zeros (n, width) at `index`."""
        return scalars.new_zeros(len(scalars), width).index_copy(1, index, scalars)


class _Norm(nn.Module):
    """Affine parameters and the application of (a, b); subclasses say over which axes moments are taken."""

    def __init__(self, irreps: str | Irreps, eps: float, affine: bool) -> None:
        super().__init__()
        self.irreps_in = self.irreps_out = as_irreps(irreps)
        self.eps, self.expected = eps, channels_of(self.irreps_in)
        self.layout = _Layout(self.irreps_in)
        self.weight = nn.Parameter(torch.ones(self.irreps_in.num_irreps)) if affine else None
        self.bias = nn.Parameter(torch.zeros(self.layout.n_scalars)) if affine else None

    def extra_repr(self) -> str:
        return f"{self.irreps_in}, eps={self.eps}, affine={self.weight is not None}"

    def moments(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean of the scalars (n, scalars) and mean square deviation of every channel (n, channels)."""
        raise NotImplementedError

    def factors(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """a and b, each (n, dim, 1, ...) with n = N or 1: the normalised field is a x + b, in at least float32."""
        check_channels(x, self.expected, (5, 6), type(self).__name__)
        _check_mask(x, mask)
        with torch.autocast(x.device.type, enabled=False):
            mean, power = self.moments(x, mask)
            scale = torch.rsqrt(power + self.eps)
            if self.weight is not None:
                scale = scale * self.weight.to(scale.dtype)
            shift = -mean * scale.index_select(1, self.layout.scalar_channels)
            if self.bias is not None:
                shift = shift + self.bias.to(shift.dtype)
            a = scale.index_select(1, self.layout.channel_of)
            b = self.layout.spread(shift, a.shape[1], self.layout.scalar_components)
        return _like(a, x), _like(b, x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        a, b = self.factors(x, mask)
        return torch.addcmul(b.to(x.dtype), x, a.to(x.dtype))


def _like(factor: Tensor, x: Tensor) -> Tensor:
    return factor.view(*factor.shape, *[1] * (x.ndim - 2))


def _check_mask(x: Tensor, mask: Tensor | None) -> None:
    if mask is not None and (x.ndim != 6 or mask.shape != (x.shape[0], x.shape[2])):
        raise ValueError(
            f"mask {tuple(mask.shape)} must be (N, Q) of an input (N, C, Q, X, Y, Z), got {tuple(x.shape)}"
        )


def _sums(x: Tensor, layout: _Layout, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Number of values (N, 1) and sums of the scalars (N, scalars) per item; masked samples are left out."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    samples, voxels = (x.shape[2] if x.ndim == 6 else 1), x.shape[-3:].numel()
    count = x.new_full((len(x), 1), float(voxels * samples), dtype=dtype)
    if mask is not None:
        count = mask.sum(1, keepdim=True).to(dtype) * voxels
    sums = [
        _over_samples(part.squeeze(2).sum((-3, -2, -1), dtype=dtype), mask, x.ndim)
        for part, block in layout.parts(x)
        if block.scalar
    ]
    return count, torch.cat([count[:, :0], *sums], dim=1)


def _square_sums(x: Tensor, mean: Tensor, layout: _Layout, mask: Tensor | None) -> Tensor:
    """(N, channels) sums of squared deviation from `mean` (n, scalars), averaged over the components of a channel."""
    squares, start = [], 0
    for part, block in layout.parts(x):
        if block.scalar:  # only these are copied
            part = part.to(mean.dtype) - _like(mean[:, start : start + block.multiplicity], part)
            start += block.multiplicity
        length = torch.linalg.vector_norm(part, dim=(2, -3, -2, -1), dtype=mean.dtype)
        squares.append(_over_samples(length.square() / block.dim, mask, x.ndim))
    return torch.cat(squares, dim=1)


def _over_samples(sums: Tensor, mask: Tensor | None, ndim: int) -> Tensor:
    """(N, channels) from (N, channels, Q) of a 6-D field, masked samples left out; a 5-D field has no samples."""
    if ndim == 5:
        return sums
    return (sums if mask is None else torch.where(mask.unsqueeze(1), sums, 0.0)).sum(2)


class EquivariantInstanceNorm(_Norm):
    """Each item's channels are normalised over its voxels (and q-samples): (N, dim, [Q,] X, Y, Z), same shape out.

    `0e` channels: (x - mean) / sqrt(var + eps).  Others: v / sqrt(mean |v|² / (2l+1) + eps), no mean is removed, as it
    would be a direction.  mask: (N, Q) bool, valid samples of a 6-D input; the others do not count.
    """

    def __init__(self, irreps: str | Irreps, *, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(irreps, eps, affine)

    def moments(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        count, sums = _sums(x, self.layout, mask)
        count = count.clamp(min=1)
        mean = sums / count
        return mean, _square_sums(x, mean, self.layout, mask) / count


class EquivariantBatchNorm(_Norm):
    """As `EquivariantInstanceNorm`, over the whole batch, with running moments for eval mode.

    Under torch.distributed the moments of a training step are those of all ranks together.
    """

    running_mean: Tensor
    running_power: Tensor

    def __init__(
        self, irreps: str | Irreps, *, eps: float = 1e-5, affine: bool = True, momentum: float = 0.1
    ) -> None:
        super().__init__(irreps, eps, affine)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(self.layout.n_scalars))
        self.register_buffer("running_power", torch.ones(self.irreps_in.num_irreps))

    def moments(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.running_mean.unsqueeze(0), self.running_power.unsqueeze(0)
        count, sums = (total.sum(0, keepdim=True) for total in _sums(x, self.layout, mask))
        count, sums = _over_ranks(torch.cat([count, sums], 1)).split([1, self.layout.n_scalars], 1)
        count = count.clamp(min=1)
        mean = sums / count
        power = _over_ranks(_square_sums(x, mean, self.layout, mask).sum(0, keepdim=True)) / count
        self._track(mean, power)
        return mean, power

    @torch.no_grad()
    def _track(self, mean: Tensor, power: Tensor) -> None:
        self.running_mean.lerp_(mean[0].to(self.running_mean), self.momentum)
        self.running_power.lerp_(power[0].to(self.running_power), self.momentum)


def _over_ranks(total: Tensor) -> Tensor:
    """The sum over all ranks, differentiable; the tensor itself outside torch.distributed."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return collective.all_reduce(total)
    return total


class NormGate(nn.Module):
    """A norm over `irreps` and its gates, followed by `Gate`, computed together: equal to gate(norm(x)).

    Nothing is carried from vectors to scalars; `dmri_monai.networks.invariant_gate.InvariantNormGate` does that.

    (N, irreps_in.dim, [Q,] X, Y, Z) -> (N, irreps.dim, ...), `irreps_in` as in `Gate`.
    """

    def __init__(self, gate: Gate, *, norm: str = "instance", eps: float = 1e-5) -> None:
        super().__init__()
        kinds = {"instance": EquivariantInstanceNorm, "batch": EquivariantBatchNorm}
        if norm not in kinds:
            raise ValueError(f"norm must be one of {sorted(kinds)}, got {norm!r}")
        self.gate = gate
        self.irreps_in, self.irreps_out = gate.irreps_in, gate.irreps_out
        self.norm = kinds[norm](gate.irreps_in, eps=eps)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return normalised_gate(self.norm, self.gate, x, mask)


def normalised_gate(
    norm: EquivariantInstanceNorm | EquivariantBatchNorm, gate: Gate, x: Tensor, mask: Tensor | None = None
) -> Tensor:
    """gate(norm(x, mask)) in one pass over the field: no normalised copy of it is made."""
    a, b = norm.factors(x, mask)
    return gate.scaled(x, a.to(x.dtype), b.to(x.dtype))
