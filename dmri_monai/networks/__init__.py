"""Networks; `dmri_monai.register.register()` enters them in `monai.networks.nets`."""

from dmri_monai.networks.any_protocol import AnyProtocolUNet
from dmri_monai.networks.equivariant_unet import EquivariantUNet
from dmri_monai.networks.invariant_unet import InvariantUNet
from dmri_monai.networks.plain_unet import PlainUNet
from dmri_monai.networks.pq_segmentation import PQOptions, PQSegmentationNet

__all__ = [
    "AnyProtocolUNet",
    "EquivariantUNet",
    "InvariantUNet",
    "PQOptions",
    "PQSegmentationNet",
    "PlainUNet",
]
