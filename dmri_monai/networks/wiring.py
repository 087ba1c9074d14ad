"""The wiring of `EquivariantUNet`, and the plain network of the same wiring that is exported.

Both classes can be compiled by TorchScript, which knows no generators, no `zip(strict=...)` and no meta data.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from dmri_monai.equivariant import EquivariantAvgPool3d, EquivariantUpsample3d, SteerableConv3d

__all__ = ["DenseUNet", "ResidualUNet", "dense_copy"]


class ResidualUNet(nn.Module):
    """The features of a residual encoder-decoder of any parts, steerable or not.

    Every level halves the grid, n -> ceil(n / 2), and the decoder returns to the size it left: no size is padded.
    """

    def __init__(
        self,
        stem: nn.Module,
        encoder: nn.ModuleList,
        widen: nn.ModuleList,
        narrow: nn.ModuleList,
        decoder: nn.ModuleList,
        head: nn.ModuleList,
    ) -> None:
        super().__init__()
        self.pool, self.upsample = EquivariantAvgPool3d(), EquivariantUpsample3d()
        self.stem, self.encoder, self.widen = stem, encoder, widen
        self.narrow, self.decoder, self.head = narrow, decoder, head

    def features(self, image: Tensor) -> list[Tensor]:
        """What the decoder gives at every level but the coarsest, finest first."""
        _check_size(image, len(self.encoder))
        x = self.stem(image)
        skips: list[Tensor] = []
        for block, widen in zip(self.encoder, self.widen):  # noqa: B905
            x = block(x)
            skips.append(x)
            x = widen(self.pool(x))
        x = self.encoder[-1](x)
        levels: list[Tensor] = []
        for narrow, block in zip(self.narrow, self.decoder):  # noqa: B905
            skip = skips.pop()
            x = block(self.upsample(narrow(x), skip.shape[2:]) + skip)
            levels.insert(0, x)
        return levels


class DenseUNet(ResidualUNet):
    """Plain convolutions in the wiring of an `EquivariantUNet`, for export: no irreps, no e3nn, no meta data.

    (B, C, X, Y, Z) -> the output at the finest level, also where the network was trained with deep supervision.
    """

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = self.head[0](self.features(image)[0])
        return output


def dense_copy(module: nn.Module) -> nn.Module:
    """A copy of `module` with every steerable convolution replaced by the ordinary one."""
    if isinstance(module, SteerableConv3d):
        return module.to_dense()
    dense = copy.deepcopy(module)
    for name, child in module.named_children():
        dense.add_module(name, dense_copy(child))
    return dense


def _check_size(image: Tensor, levels: int) -> None:
    """Raise ValueError where the coarsest grid is a single voxel, whose statistics over voxels are empty."""
    size, smallest = list(image.shape[2:]), 1 << (levels - 1)
    if max(size) <= smallest:
        raise ValueError(
            f"EquivariantUNet: size {size} is too small for {levels} levels, one axis must exceed {smallest} voxels"
        )
