"""Entry into MONAI's registries. Nothing is entered by importing a module: call `register()`, any number of times.

A config does so where it names a network: `"_requires_": "$dmri_monai.register.register()"`.
"""

from __future__ import annotations

from collections.abc import Callable

from monai.networks import nets
from monai.networks.layers.factories import Act, LayerFactory, Norm, Pool

from dmri_monai.equivariant import (
    EquivariantAvgPool3d,
    EquivariantBatchNorm,
    EquivariantInstanceNorm,
    Gate,
    NormActivation,
)
from dmri_monai.networks import (
    AnyProtocolUNet,
    EquivariantUNet,
    InvariantUNet,
    PlainUNet,
    PQSegmentationNet,
)

__all__ = ["register", "register_layers", "register_networks"]

# MONAI's blocks find norms, activations and pooling by name, but never a convolution: `Convolution` hard-codes its own.
IN_SPACE: tuple[tuple[LayerFactory, str, type], ...] = (
    (Norm, "equivariant_instance", EquivariantInstanceNorm),
    (Norm, "equivariant_batch", EquivariantBatchNorm),
    (Pool, "equivariant_avg", EquivariantAvgPool3d),
)
POINTWISE: tuple[tuple[LayerFactory, str, type], ...] = (
    (Act, "gate", Gate),
    (Act, "norm_activation", NormActivation),
)
NETWORKS = (AnyProtocolUNet, EquivariantUNet, InvariantUNet, PlainUNet, PQSegmentationNet)


def register() -> None:
    """Enter layers and networks: `"_target_": "monai.networks.nets.EquivariantUNet"` then works in a config."""
    register_layers()
    register_networks()


def register_networks() -> None:
    """Enter the networks in `monai.networks.nets` under their names; a name MONAI already has is left alone."""
    for network in NETWORKS:
        if not hasattr(nets, network.__name__):
            setattr(nets, network.__name__, network)


def register_layers() -> None:
    """Enter the layers in MONAI's factories, for its blocks (`ADN`) and functions (`get_norm_layer`, ...).

    Norm["equivariant_instance", 3], Norm["equivariant_batch", 3], Pool["equivariant_avg", 3], Act["gate"] and
    Act["norm_activation"].  `SteerableBlock` is what stands for MONAI's `Convolution`, and takes its arguments.
    """
    for factory, name, layer in IN_SPACE:
        if name.upper() not in factory.components:
            factory.add_factory_callable(name, _in_three_dimensions(name, layer), layer.__doc__)
    for factory, name, layer in POINTWISE:
        if name.upper() not in factory.components:
            factory.add_factory_class(name, layer, layer.__doc__)


def _in_three_dimensions(name: str, layer: type) -> Callable[[int], type]:
    def make(dim: int) -> type:
        if dim != 3:
            raise ValueError(f"{name} exists for 3 spatial dimensions, not {dim}")
        return layer

    return make
