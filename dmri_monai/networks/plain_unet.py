"""The plain 3-D U-Net of Weninger et al. 2022: the baseline every equivariant network is compared with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["PlainUNet"]


def _check_size(image: Tensor, in_channels: int) -> None:
    # plain loops and lists: TorchScript compiles this
    size = list(image.shape)
    if len(size) != 5 or size[1] != in_channels:
        raise ValueError(f"PlainUNet: input shape {size}, expected [B, {in_channels}, X, Y, Z]")
    for n in size[2:]:
        if n % 8 != 0:
            raise ValueError(f"PlainUNet: spatial size {size[2:]} is not a multiple of 8")
    if max(size[2:]) == 8:
        raise ValueError(f"PlainUNet: spatial size {size[2:]} is too small, one axis must exceed 8 voxels")


def _conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 3, padding=1), nn.InstanceNorm3d(out_channels), nn.ReLU()
    )


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(_conv(in_channels, out_channels), _conv(out_channels, out_channels))


def _up(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose3d(channels, channels, 3, stride=2, padding=1, output_padding=1),
        nn.InstanceNorm3d(channels),
        nn.ReLU(),
    )


class PlainUNet(nn.Module):
    """U-Net with three levels, double convolutions, instance norm and transposed convolutions; a separate 1x1x1 head.

    forward: (B, in_channels, X, Y, Z) -> (B, out_channels, X, Y, Z), or the (B, filters, X, Y, Z) features when
    `out_channels` is None. X, Y and Z must be multiples of 8, one above 8; other sizes raise ValueError.

    The body's parameter names are those of the published code, so its state dicts load.
    Reference: Weninger et al. 2022, "Diffusion MRI Specific Pretraining by
    Self-supervision on an Auxiliary Dataset", BVM 2022
    """

    def __init__(self, in_channels: int = 64, out_channels: int | None = None, filters: int = 16) -> None:
        super().__init__()
        self.in_channels = in_channels
        f = filters
        self.down_1 = _double_conv(in_channels, f)
        self.down_2 = _double_conv(f, 2 * f)
        self.down_3 = _double_conv(2 * f, 4 * f)
        self.pool = nn.MaxPool3d(2)
        self.bridge = _double_conv(4 * f, 8 * f)
        self.trans_1 = _up(8 * f)
        self.up_1 = _double_conv(12 * f, 4 * f)
        self.trans_2 = _up(4 * f)
        self.up_2 = _double_conv(6 * f, 2 * f)
        self.trans_3 = _up(2 * f)
        self.up_3 = _double_conv(3 * f, f)
        self.head: nn.Module = nn.Identity() if out_channels is None else nn.Conv3d(f, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        _check_size(image, self.in_channels)
        down_1 = self.down_1(image)
        down_2 = self.down_2(self.pool(down_1))
        down_3 = self.down_3(self.pool(down_2))
        x = self.trans_1(self.bridge(self.pool(down_3)))
        x = self.trans_2(self.up_1(torch.cat([x, down_3], dim=1)))
        x = self.trans_3(self.up_2(torch.cat([x, down_2], dim=1)))
        return self.head(self.up_3(torch.cat([x, down_1], dim=1)))
