"""From the description of a model to its network."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import nn

from dmri_monai.inference.components import made
from dmri_monai.inference.spec import BY_LEVELS, ModelSpec
from dmri_monai.networks import AnyProtocolUNet, EquivariantUNet, InvariantUNet, PlainUNet, PQSegmentationNet
from dmri_monai.so3 import as_irreps

__all__ = ["build_network", "prepare_batch", "smallest_size", "to_device"]

FILTERS = {"tiny": 8, "small": 16, "base": 32}  # of PlainUNet; 16 as published
PQ_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"pq": [[3, 1]], "p": [[6, 2]], "kernel_size": 3},
    "small": {},  # the defaults: the best model of Müller et al. 2021
    "base": {"pq": [[7, 4], [7, 4]], "p": [[40, 10], [20, 5], [10, 3]]},
}
SAMPLE_KEYS = {"bvals": "bvals", "bvecs_voxel": "bvecs_voxel", "mask": "valid"}


def build_network(spec: ModelSpec, irreps_out: str | None = None) -> nn.Module:
    """The untrained network of `spec`; its output is that of the spec's task, or `irreps_out`.

    ValueError for `network_options` that its class does not know or refuses, naming the class.
    """
    irreps_out = irreps_out or spec.irreps_out
    kind, arguments, options = _constructor(spec, irreps_out)
    try:
        return kind(*arguments, **options)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"network_options of {kind.__name__}: {error}") from error


def _constructor(spec: ModelSpec, irreps_out: str) -> tuple[type[nn.Module], tuple[Any, ...], dict[str, Any]]:
    """Class of the network, its positional and its keyword arguments."""
    own = made(spec.network_options)
    if spec.architecture in BY_LEVELS:
        kind = AnyProtocolUNet if spec.architecture == "any" else EquivariantUNet
        size = spec.size if isinstance(spec.size, str) else list(spec.size)
        return kind, (spec.irreps, irreps_out, size), own
    assert isinstance(spec.size, str)  # the spec has checked it
    if spec.architecture == "invariants":
        return InvariantUNet, (spec.irreps, irreps_out, spec.size), own
    if spec.architecture == "pq":
        options = {**PQ_SIZES[spec.size], **own, "b_max": spec.b_max}
        return PQSegmentationNet, (irreps_out,), options
    assert spec.in_channels is not None  # of samples alone
    channels = (spec.in_channels, as_irreps(irreps_out).dim)
    return PlainUNet, channels, {"filters": FILTERS[spec.size], **own}


def smallest_size(network: nn.Module) -> int:
    """Voxels that one axis of an image needs at least: statistics over a coarsest level of one voxel are empty."""
    if isinstance(network, PlainUNet):
        return 9  # padded to 16, of which its three poolings leave two
    unet = network.context if isinstance(network, AnyProtocolUNet) else network
    return 2 ** (len(unet.irreps_levels) - 1) + 1 if isinstance(unet, EquivariantUNet) else 1


def to_device(network: nn.Module, device: torch.device | str) -> nn.Module:
    """`network` on `device`, channels last, which convolutions prefer, where all its weights have that format."""
    tensors = chain(network.parameters(), network.buffers())
    if any(tensor.ndim == 4 for tensor in tensors):  # of steerable kernels on q-space; torch would refuse
        return network.to(device)
    return network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload,no-any-return]


def prepare_batch(spec: ModelSpec) -> Callable[..., Any]:
    """`prepare_batch` of MONAI's engines: adds the gradient table where the network takes samples."""
    from monai.engines import PrepareBatchExtraInput  # loads ignite
    from monai.engines.utils import default_prepare_batch

    return PrepareBatchExtraInput(SAMPLE_KEYS) if spec.takes == "samples" else default_prepare_batch
