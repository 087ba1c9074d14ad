"""Networks; importing this package enters them in `monai.networks.nets`."""

from dmri_monai.networks.plain_unet import PlainUNet

__all__ = ["PlainUNet"]
