"""Networks; `dmri_monai.register.register()` enters them in `monai.networks.nets`."""

from dmri_monai.networks.equivariant_unet import EquivariantUNet
from dmri_monai.networks.plain_unet import PlainUNet

__all__ = ["EquivariantUNet", "PlainUNet"]
