"""`EquivariantUNet`: a residual encoder-decoder of steerable convolutions on spherical-harmonic channels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dmri_monai.equivariant import EquivariantAvgPool3d, EquivariantUpsample3d, SteerableConv3d, as_irreps
from dmri_monai.equivariant.representation import Channels, channels_of
from dmri_monai.networks.checks import as_plain, check_harmonics, with_meta_of
from dmri_monai.networks.gate import InvariantNormGate

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["PRESETS", "EquivariantUNet", "ResidualUNet"]

# irreps of the finest level and number of levels; multiplicities double from level to level
PRESETS = {
    "tiny": ("7x0e+1x1o+1x2e+1x4e", 3),  # 24, 48, 96 components
    "small": ("12x0e+3x1o+2x2e+1x4e", 4),  # 40, 80, 160, 320
    "base": ("19x0e+4x1o+3x2e+2x4e", 4),  # 64, 128, 256, 512
}
L_MAX = 4  # highest degree inside a kernel: a grid of 3x3x3 cannot tell higher ones apart


class ResidualUNet(nn.Module):
    """The wiring of `EquivariantUNet`, for steerable parts or their dense copies.

    Every level halves the grid, n -> ceil(n / 2), and the decoder returns to the size it left: no size is padded.
    """

    def __init__(
        self,
        expected: Channels,
        stem: nn.Module,
        encoder: nn.ModuleList,
        widen: nn.ModuleList,
        narrow: nn.ModuleList,
        decoder: nn.ModuleList,
        head: nn.ModuleList,
    ) -> None:
        super().__init__()
        self.expected = expected
        self.pool, self.upsample = EquivariantAvgPool3d(), EquivariantUpsample3d()
        self.stem, self.encoder, self.widen = stem, encoder, widen
        self.narrow, self.decoder, self.head = narrow, decoder, head

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        check_harmonics(image, self.expected, type(self).__name__)
        _check_size(image, len(self.encoder))
        features = self.features(as_plain(image))
        heads = self.head or [nn.Identity()]
        outputs = [with_meta_of(image, head(x)) for head, x in zip(heads, features, strict=False)]
        return outputs if self.training and len(outputs) > 1 else outputs[0]

    def features(self, image: Tensor) -> list[Tensor]:
        """What the decoder gives at every level but the coarsest, finest first."""
        x, skips = self.encoder[0](self.stem(image)), []
        for widen, block in zip(self.widen, self.encoder[1:], strict=True):
            skips.append(x)
            x = block(widen(self.pool(x)))
        levels: list[Tensor] = []
        for narrow, block, skip in zip(self.narrow, self.decoder, reversed(skips), strict=True):
            x = block(self.upsample(narrow(x), skip.shape[2:]) + skip)
            levels.insert(0, x)
        return levels


class EquivariantUNet(ResidualUNet):
    """U-Net on fields of irreps: when image and directions turn together, so does the output.

    forward: (B, irreps_in.dim, X, Y, Z) -> (B, irreps_out.dim, X, Y, Z), or the (B, irreps_features.dim, X, Y, Z)
    features of the finest level when `irreps_out` is None.  Any sizes.  Exact under the rotations and reflections of
    the cube, close to it under other rotations.  Reflections mean that storage handedness cannot matter, and that the
    network cannot tell left from right without an input channel that does.

    irreps_in: of the channels, as `dmri_monai.qspace.basis.harmonic_irreps` names them ("2x0e+1x2e+1x4e").
    irreps_out: of the output, "4x0e" for classes, "1x2e" for an axis, "1x1o" for a vector, ....
    size: "tiny", "small", "base", or the irreps of every level, finest first, as a list of strings.
    deep_supervision: in training mode return a list with one output per decoder level, finest first.
    spacing: voxel size along x, y, z; only ratios matter. The kernels are then isotropic in mm.

    All parameters of the head, and no others, are called `head.*`.
    """

    def __init__(
        self,
        irreps_in: str | Irreps,
        irreps_out: str | Irreps | None = None,
        size: str | Sequence[str] = "small",
        deep_supervision: bool = False,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        fields, levels = as_irreps(irreps_in), _levels(size)
        options: dict[str, Any] = {"spacing": spacing, "l_max": max(L_MAX, *(ir.l for _, ir in fields))}
        steps = list(zip(levels[1:], levels, strict=False))
        heads = [] if irreps_out is None else levels[:-1] if deep_supervision else levels[:1]
        super().__init__(
            channels_of(fields),
            stem=SteerableConv3d(fields, levels[0], 3, **options),
            encoder=nn.ModuleList(_Residual(irreps, options) for irreps in levels),
            widen=nn.ModuleList(_pointwise(fine, coarse, options) for coarse, fine in steps),
            narrow=nn.ModuleList(_pointwise(coarse, fine, options) for coarse, fine in reversed(steps)),
            decoder=nn.ModuleList(_Residual(fine, options) for _, fine in reversed(steps)),
            head=nn.ModuleList(_pointwise(irreps, as_irreps(irreps_out), options) for irreps in heads),
        )
        self.irreps_in, self.irreps_features = str(fields), str(levels[0])
        self.irreps_out = self.irreps_features if irreps_out is None else str(as_irreps(irreps_out))

    def to_dense(self) -> ResidualUNet:
        """An ordinary network with the same output, for export: plain convolutions, no irreps, no e3nn.

        torch.export and ONNX fix the spatial size, on which the halving depends.
        """
        stem = _dense(self.stem)
        stages = (self.encoder, self.widen, self.narrow, self.decoder, self.head)
        lists = (nn.ModuleList(_dense(part) for part in stage) for stage in stages)
        return ResidualUNet(self.expected, stem, *lists).train(self.training)


class _Residual(nn.Module):
    """x + two times (3x3x3 convolution, norm, gate)."""

    def __init__(self, irreps: Irreps, options: dict[str, Any]) -> None:
        super().__init__()
        self.body = nn.Sequential(
            SteerableConv3d(irreps, irreps, 3, bias=False, **options),  # the norm removes a bias
            InvariantNormGate(irreps),
            SteerableConv3d(irreps, irreps, 3, bias=False, **options),
            InvariantNormGate(irreps),
        )

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.body(x)
        return x + change


def _levels(size: str | Sequence[str]) -> list[Irreps]:
    """Irreps of every level, finest first, scalars leading."""
    if not isinstance(size, str):
        levels = [as_irreps(irreps).regroup() for irreps in size]
        if len(levels) < 2:
            raise ValueError(f"EquivariantUNet: size lists {len(levels)} levels, at least 2 are needed")
        return levels
    if size not in PRESETS:
        raise ValueError(f"EquivariantUNet: size {size!r} is none of {sorted(PRESETS)} and no list of irreps")
    finest, count = PRESETS[size]
    irreps = as_irreps(finest)
    return [type(irreps)([(mul << level, ir) for mul, ir in irreps]) for level in range(count)]


def _pointwise(irreps_in: Irreps, irreps_out: Irreps, options: dict[str, Any]) -> SteerableConv3d:
    """A linear map at each voxel; between different irreps, which no such map exists for, a 3x3x3 convolution."""
    known = {ir for _, ir in irreps_in}
    kernel_size = 1 if all(ir in known for _, ir in irreps_out) else 3
    return SteerableConv3d(irreps_in, irreps_out, kernel_size, **options)


def _dense(module: nn.Module) -> nn.Module:
    """A copy of `module` with every steerable convolution replaced by the ordinary one."""
    if isinstance(module, SteerableConv3d):
        return module.to_dense()
    dense = copy.deepcopy(module)
    for name, child in module.named_children():
        dense.add_module(name, _dense(child))
    return dense


def _check_size(image: Tensor, levels: int) -> None:
    """Raise ValueError where the coarsest grid is a single voxel, whose statistics over voxels are empty."""
    smallest = 2 ** (levels - 1)
    if max(image.shape[2:]) <= smallest:
        raise ValueError(
            f"EquivariantUNet: size {tuple(image.shape[2:])} is too small for {levels} levels, "
            f"one axis must exceed {smallest} voxels"
        )
