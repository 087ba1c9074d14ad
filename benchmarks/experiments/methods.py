"""The networks that are compared: ours, MONAI's own, and what each takes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dmri_monai.inference.components import made
from dmri_monai.networks import AnyProtocolUNet, EquivariantUNet, PlainUNet, PQSegmentationNet
from dmri_monai.so3 import as_irreps

__all__ = ["METHODS", "NORMS", "Method", "build"]

B_MAX = 3000.0  # s/mm² at which |q| is 1 for networks on samples: the highest of all tests
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "instance": nn.InstanceNorm3d,
    "batch": nn.BatchNorm3d,
    "group": lambda channels: nn.GroupNorm(max(1, channels // 4), channels),
}


@dataclass(frozen=True)
class Method:
    """network: a key of `NETWORKS`.  takes: of `cases.encoded`.  rotated: learns from heads turned at random.

    variants: settings beside learning rate and class weight that its search tries, the first by default.
    """

    network: str
    takes: str = "harmonics"
    rotated: bool = False
    variants: tuple[Mapping[str, Any], ...] = ({},)
    multiple: int = field(default=8)


NORM_VARIANTS = ({"norm": "instance"}, {"norm": "batch"}, {"norm": "group"})
METHODS = {
    "plain": Method("plain", variants=NORM_VARIANTS),
    "plain, rotated": Method("plain", rotated=True, variants=NORM_VARIANTS),
    "plain, invariants": Method("plain", "invariants", variants=NORM_VARIANTS),
    "SegResNet": Method("SegResNet", variants=NORM_VARIANTS),
    "SegResNet, rotated": Method("SegResNet", rotated=True, variants=NORM_VARIANTS),
    "DynUNet": Method("DynUNet", variants=NORM_VARIANTS),
    "DynUNet, rotated": Method("DynUNet", rotated=True, variants=NORM_VARIANTS),
    "equivariant": Method("equivariant", multiple=1),
    "any": Method("any", "shells", multiple=1),
    "pq": Method("pq", "samples", multiple=1),
}


def build(
    network: str, irreps: str, irreps_out: str, size: Mapping[str, Any], norm: str = "instance"
) -> nn.Module:
    """The untrained network on channels of `irreps`; size: arguments of its class, norm: of networks without irreps."""
    made_network: nn.Module = NETWORKS[network](irreps, irreps_out, **made(dict(size)))
    if network not in OURS and norm != "instance":
        _replace_norms(made_network, NORMS[norm])
    return made_network


def _segresnet(irreps: str, irreps_out: str, filters: int) -> nn.Module:
    from monai.networks.nets import SegResNet

    channels = {"in_channels": as_irreps(irreps).dim, "out_channels": as_irreps(irreps_out).dim}
    return SegResNet(
        3, filters, **channels, norm=("INSTANCE", {}), blocks_down=(1, 2, 2, 2), blocks_up=(1, 1, 1)
    )


def _dynunet(irreps: str, irreps_out: str, filters: int) -> nn.Module:
    from monai.networks.nets import DynUNet

    return DynUNet(
        3, as_irreps(irreps).dim, as_irreps(irreps_out).dim, kernel_size=[3] * 4, strides=[1, 2, 2, 2],
        upsample_kernel_size=[2] * 3, filters=[filters, 2 * filters, 4 * filters, 8 * filters],
    )  # fmt: skip


def _plain(irreps: str, irreps_out: str, filters: int) -> nn.Module:
    return PlainUNet(as_irreps(irreps).dim, as_irreps(irreps_out).dim, filters)


def _equivariant(irreps: str, irreps_out: str, **size: Any) -> nn.Module:
    return EquivariantUNet(irreps, irreps_out, **size)


def _any(irreps: str, irreps_out: str, **size: Any) -> nn.Module:
    return AnyProtocolUNet(irreps, irreps_out, **size)


def _pq(irreps: str, irreps_out: str, **size: Any) -> nn.Module:
    return PQSegmentationNet(irreps_out, B_MAX, **size)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "plain": _plain, "SegResNet": _segresnet, "DynUNet": _dynunet,
    "equivariant": _equivariant, "any": _any, "pq": _pq,
}  # fmt: skip
OURS = ("equivariant", "any", "pq")  # networks on irreps, whose norms are their own


def _replace_norms(network: nn.Module, norm: Callable[[int], nn.Module]) -> None:
    for name, child in network.named_children():
        if isinstance(child, nn.InstanceNorm3d):
            setattr(network, name, norm(child.num_features))
        else:
            _replace_norms(child, norm)


def parameters(network: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def output(
    network: nn.Module, image: Tensor, table: tuple[Tensor, ...], precision: str = "bfloat16"
) -> Tensor:
    """(B, K, X, Y, Z) float32 of one batch, computed in `precision`; the finest level where there are several."""
    with torch.autocast(image.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        found = network(image.contiguous(memory_format=torch.channels_last_3d), *table)
    first: Tensor = found[0] if isinstance(found, list) else found
    return first.float()
