"""The plain 3-D U-Net of Weninger et al. 2022: the baseline every equivariant network is compared with."""

from __future__ import annotations

import torch
from e3nn.o3 import Irreps
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


def _blocks(irreps: str, in_channels: int) -> list[tuple[int, int]]:
    """(start, stop) channels of every l > 0 block of `irreps`, whose dimension must be `in_channels`."""
    parsed = Irreps(irreps)
    if parsed.dim != in_channels:
        raise ValueError(
            f"PlainUNet: irreps {irreps} have {parsed.dim} channels, in_channels is {in_channels}"
        )
    blocks, start = [], 0
    for multiplicity, irrep in parsed:
        for _ in range(multiplicity):
            if irrep.l > 0:
                blocks.append((start, start + irrep.dim))
            start += irrep.dim
    return blocks


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
    `out_channels` is None. X, Y and Z must be multiples of 8; other sizes raise ValueError.

    irreps: of the input, such as "2x0e+1x2e+1x4e" for harmonic channels; the length of every l > 0 block is then
    appended to the input. Anisotropy is such a length, a quadratic form that convolutions are slow to learn.

    The body's parameter names are those of the published code, so its state dicts load.
    Reference: Weninger et al. 2022, "Diffusion MRI Specific Pretraining by
    Self-supervision on an Auxiliary Dataset", BVM 2022
    """

    blocks: list[tuple[int, int]]  # declared for TorchScript, which cannot tell the type of an empty list

    def __init__(
        self,
        in_channels: int = 64,
        out_channels: int | None = None,
        filters: int = 16,
        irreps: str | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.blocks = [] if irreps is None else _blocks(irreps, in_channels)
        f = filters
        self.down_1 = _double_conv(in_channels + len(self.blocks), f)
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
        parts = [image]
        for start, stop in self.blocks:
            parts.append(torch.linalg.vector_norm(image[:, start:stop], dim=1, keepdim=True))
        down_1 = self.down_1(torch.cat(parts, dim=1))
        down_2 = self.down_2(self.pool(down_1))
        down_3 = self.down_3(self.pool(down_2))
        x = self.trans_1(self.bridge(self.pool(down_3)))
        x = self.trans_2(self.up_1(torch.cat([x, down_3], dim=1)))
        x = self.trans_3(self.up_2(torch.cat([x, down_2], dim=1)))
        return self.head(self.up_3(torch.cat([x, down_1], dim=1)))
