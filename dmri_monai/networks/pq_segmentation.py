"""`PQSegmentationNet`: the network of Müller et al. 2021 on the gradient samples themselves, for any table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dmri_monai.equivariant import (
    Cosine,
    EquivariantBatchNorm,
    EquivariantInstanceNorm,
    Gate,
    PQConv3d,
    PQTensorProduct,
    QLengthWeightedMean,
    QMean,
    SteerableBlock,
    SteerableConv3d,
    as_irreps,
    irreps_from_multiplicities,
)
from dmri_monai.equivariant.kernel.radial import Radial
from dmri_monai.equivariant.norm import normalised_gate
from dmri_monai.equivariant.pq import Kernel
from dmri_monai.gradients import B0_THRESHOLD
from dmri_monai.networks.input_checks import as_plain, with_meta_of
from dmri_monai.networks.samples import combine_b0, spread_subset

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["PQOptions", "PQSegmentationNet"]

Channels = str | Sequence[int]
NORMS = {"instance": EquivariantInstanceNorm, "batch": EquivariantBatchNorm}


@dataclass(frozen=True)
class PQOptions:
    """What all layers of a `PQSegmentationNet` share.

    parity, antipodal, scaling, checkpoint, strategy: of `PQConv3d`; the published network is parity=False,
        antipodal=False, scaling="sqrt".
    norm: "instance", "batch" or None, before the gate.  activation: of the scalars, "silu" or "relu".
    p_radial: radial basis of the layers without q-space.
    q_out: number of samples each pq layer gives, spread over the scan's own, None for all: the gradual reduction.
    b0_threshold: volumes with b <= this (s/mm²) are b0.
    """

    parity: bool = True
    antipodal: bool = True
    scaling: Literal["mean", "sqrt"] = "mean"
    checkpoint: bool = False
    strategy: Literal["auto", "dense", "p_basis", "p_last", "spectral"] = "auto"
    norm: Literal["instance", "batch"] | None = None
    activation: str = "silu"
    p_radial: Radial = field(default_factory=Cosine)
    q_out: Sequence[int | None] | None = None
    b0_threshold: float = B0_THRESHOLD

    def __post_init__(self) -> None:
        if self.norm is not None and self.norm not in NORMS:
            raise ValueError(f"norm must be None or one of {sorted(NORMS)}, got {self.norm!r}")

    def normalization(self, irreps: Irreps) -> EquivariantInstanceNorm | EquivariantBatchNorm | None:
        """The norm layer over `irreps`, or None."""
        return None if self.norm is None else NORMS[self.norm](irreps)


class PQSegmentationNet(nn.Module):
    """pq layers on the samples, reduction of q-space, p layers; the defaults are the published best model's.

    forward(image, bvals, bvecs_voxel, mask=None): image (B, N, X, Y, Z), bvals (B, N) s/mm², bvecs_voxel (B, N, 3),
    mask (B, N) bool of valid volumes -> (B, irreps_out.dim, X, Y, Z).  A leading size of 1 of the table broadcasts.
    Any table at every call; b0 volumes are averaged first, padding that `mask` excludes changes nothing.

    irreps_out: "1x0e" for one score per voxel, "1x2e" for an axis, ...; None gives the features of the last p layer.
    b_max: b-value (s/mm²) at which |q| is 1: a constant of the model, never of the scan.
    pq, p: channels of every layer, as irreps ("7x0e+4x1o") or counts per degree ([7, 4]).
    kernel_size: of all layers, or one for each pq layer, each p layer and the head, in this order.
    kernel: of the pq layers; None is PQTensorProduct() with cosine p-radial and Gaussian q-radial functions.
    reduction: "weighted" (by a learned function of |q|), "mean", or "conv" (one more pq layer that ends q-space).

    Reference: Müller et al. 2021, arXiv:2102.06942
    """

    def __init__(
        self,
        irreps_out: str | None,
        b_max: float,
        pq: Sequence[Channels] = ((7, 4),),
        p: Sequence[Channels] = ((20, 5), (10, 3), (5, 2)),
        kernel_size: int | Sequence[int] = 5,
        kernel: Kernel | None = None,
        reduction: Literal["weighted", "mean", "conv"] = "weighted",
        options: PQOptions | None = None,
    ) -> None:
        super().__init__()
        self.b_max, self.options = b_max, options or PQOptions()
        kernel = kernel or PQTensorProduct(p_radial=Cosine())
        pq_fields = [as_irreps("1x0e"), *map(_field, pq)]
        p_fields = [pq_fields[-1], *map(_field, p)]
        sizes = _sizes(kernel_size, len(pq), len(p))
        self.q_out = _q_out(self.options.q_out, len(pq))
        self.pq_layers = nn.ModuleList(
            _PQLayer(a, b, size, kernel, self.options)
            for a, b, size in zip(pq_fields, pq_fields[1:], sizes, strict=False)
        )
        self.reduction = _reduction(reduction, pq_fields[-1], sizes[len(pq) - 1], kernel, self.options)
        self.p_layers = nn.Sequential(
            *(
                _p_layer(a, b, size, self.options)
                for a, b, size in zip(p_fields, p_fields[1:], sizes[len(pq) :], strict=False)
            )
        )
        self.irreps_features = str(p_fields[-1])
        self.irreps_out = self.irreps_features if irreps_out is None else str(as_irreps(irreps_out))
        self.head = (
            nn.Identity()
            if irreps_out is None
            else SteerableConv3d(p_fields[-1], irreps_out, sizes[-1], **_p_kernel(self.options))
        )

    def forward(
        self, image: Tensor, bvals: Tensor, bvecs_voxel: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        plain = as_plain(image)
        signal, q, valid = combine_b0(
            plain, bvals, bvecs_voxel, mask, b_max=self.b_max, b0_threshold=self.options.b0_threshold
        )
        x = signal.unsqueeze(1)
        for layer, count in zip(self.pq_layers, self.q_out, strict=True):
            q_out, valid_out = _kept(q, valid, count)
            x = layer(x, q, valid, q_out, valid_out)
            q, valid = q_out, valid_out
        features: Tensor = self.p_layers(self._reduced(x, q, valid))
        return with_meta_of(image, self.head(features))

    def _reduced(self, x: Tensor, q: Tensor, valid: Tensor) -> Tensor:
        takes_q = not isinstance(self.reduction, QMean)
        reduced: Tensor = self.reduction(x, q, valid) if takes_q else self.reduction(x, valid)
        return reduced


class _PQLayer(nn.Module):
    """PQConv3d, norm, gate; without q-space on the way out it is the reduction by convolution."""

    def __init__(
        self,
        irreps_in: Irreps,
        irreps_out: Irreps,
        kernel_size: int,
        kernel: Kernel,
        options: PQOptions,
        has_q_out: bool = True,
    ) -> None:
        super().__init__()
        gate = Gate(irreps_out, activation=options.activation)
        self.conv = PQConv3d(
            irreps_in,
            gate.irreps_in,
            kernel_size,
            kernel,
            q_out=has_q_out,
            parity=options.parity,
            antipodal=options.antipodal,
            scaling=options.scaling,
            checkpoint=options.checkpoint,
            strategy=options.strategy,
        )
        self.norm = options.normalization(gate.irreps_in)
        self.gate = gate

    def forward(
        self,
        x: Tensor,
        q: Tensor,
        valid: Tensor,
        q_out: Tensor | None = None,
        valid_out: Tensor | None = None,
    ) -> Tensor:
        y = self.conv(x, q, q_out, valid, valid_out)
        if self.norm is not None:
            return normalised_gate(self.norm, self.gate, y, valid_out)
        gated: Tensor = self.gate(y)
        return gated


def _p_kernel(options: PQOptions) -> dict[str, Any]:
    return {"radial": options.p_radial, "parity": options.parity}


def _p_layer(irreps_in: Irreps, irreps_out: Irreps, kernel_size: int, options: PQOptions) -> SteerableBlock:
    return SteerableBlock(
        3,
        irreps_in,
        irreps_out,
        kernel_size=kernel_size,
        adn_ordering="NA",
        act=("gate", {"activation": options.activation}),
        norm=f"equivariant_{options.norm}" if options.norm else None,
        kernel=_p_kernel(options),
    )


def _reduction(kind: str, irreps: Irreps, kernel_size: int, kernel: Kernel, options: PQOptions) -> nn.Module:
    if kind == "weighted":
        return QLengthWeightedMean(irreps, scaling=options.scaling)
    if kind == "mean":
        return QMean()
    if kind == "conv":
        return _PQLayer(irreps, irreps, kernel_size, kernel, options, has_q_out=False)
    raise ValueError(f"reduction must be 'weighted', 'mean' or 'conv', got {kind!r}")


def _field(channels: Channels) -> Irreps:
    return as_irreps(channels) if isinstance(channels, str) else irreps_from_multiplicities(channels)


def _sizes(kernel_size: int | Sequence[int], n_pq: int, n_p: int) -> list[int]:
    """One kernel size per pq layer, p layer and head."""
    if n_pq < 1:
        raise ValueError("PQSegmentationNet: pq lists 0 layers, at least 1 is needed")
    count = n_pq + n_p + 1
    sizes = [kernel_size] * count if isinstance(kernel_size, int) else list(kernel_size)
    if len(sizes) != count:
        raise ValueError(
            f"PQSegmentationNet: {len(sizes)} kernel sizes for {n_pq} pq layers, {n_p} p layers and the head"
        )
    return sizes


def _q_out(counts: Sequence[int | None] | None, layers: int) -> list[int | None]:
    """How many samples every pq layer gives, None for all."""
    if counts is None:
        return [None] * layers
    if len(counts) != layers or any(count is not None and count < 1 for count in counts):
        raise ValueError(
            f"q_out {list(counts)} must be a positive number or None for each of {layers} pq layers"
        )
    return list(counts)


def _kept(q: Tensor, valid: Tensor, count: int | None) -> tuple[Tensor, Tensor]:
    """The q-vectors and mask of the samples a layer gives."""
    if count is None or count >= q.shape[1]:
        return q, valid
    chosen = spread_subset(q, valid, count)
    return torch.gather(q, 1, chosen.unsqueeze(-1).expand(-1, -1, 3)), torch.gather(valid, 1, chosen)
