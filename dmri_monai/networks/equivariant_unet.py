"""`EquivariantUNet`: a residual encoder-decoder of steerable convolutions on spherical-harmonic channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dmri_monai.equivariant import SteerableConv3d, as_irreps
from dmri_monai.networks.input_checks import as_plain, check_harmonics, with_meta_of
from dmri_monai.networks.invariant_gate import InvariantNormGate
from dmri_monai.networks.wiring import DenseUNet, ResidualUNet, dense_copy
from dmri_monai.so3 import channels_of

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["PRESETS", "EquivariantUNet"]

# irreps of the finest level and number of levels; multiplicities double from level to level
PRESETS = {
    "tiny": ("7x0e+1x1o+1x2e+1x4e", 3),  # 24, 48, 96 components
    "small": ("12x0e+3x1o+2x2e+1x4e", 4),  # 40, 80, 160, 320
    "base": ("19x0e+4x1o+3x2e+2x4e", 4),  # 64, 128, 256, 512
}
L_MAX = 4  # highest degree inside a kernel: a grid of 3x3x3 cannot tell higher ones apart


class EquivariantUNet(ResidualUNet):
    """U-Net on fields of irreps: when image and directions turn together, so does the output.

    forward: (B, irreps_in.dim, X, Y, Z) -> (B, irreps_out.dim, X, Y, Z), or the (B, irreps_features.dim, X, Y, Z)
    features of the finest level when `irreps_out` is None.  Any sizes.  Exact under the rotations and reflections of
    the cube, close to it under other rotations.  Reflections mean that storage handedness cannot matter, and that the
    network cannot tell left from right without an input channel that does.

    irreps_in: of the channels, as `dmri_monai.qspace.shell_fit.harmonic_irreps` names them ("2x0e+1x2e+1x4e").
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
            stem=SteerableConv3d(fields, levels[0], 3, **options),
            encoder=nn.ModuleList(_Residual(irreps, options) for irreps in levels),
            widen=nn.ModuleList(_pointwise(fine, coarse, options) for coarse, fine in steps),
            narrow=nn.ModuleList(_pointwise(coarse, fine, options) for coarse, fine in reversed(steps)),
            decoder=nn.ModuleList(_Residual(fine, options) for _, fine in reversed(steps)),
            head=nn.ModuleList(_pointwise(irreps, as_irreps(irreps_out), options) for irreps in heads),
        )
        self.expected = channels_of(fields)
        self.irreps_in, self.irreps_features = str(fields), str(levels[0])
        self.irreps_levels = [str(irreps) for irreps in levels]
        self.irreps_out = self.irreps_features if irreps_out is None else str(as_irreps(irreps_out))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        check_harmonics(image, self.expected, type(self).__name__)
        features = self.features(as_plain(image))
        heads = self.head or [nn.Identity()]
        outputs = [with_meta_of(image, head(x)) for head, x in zip(heads, features, strict=False)]
        return outputs if self.training and len(outputs) > 1 else outputs[0]

    def to_dense(self) -> DenseUNet:
        """An ordinary network with the same output, for export: plain convolutions, no irreps, no e3nn.

        TorchScript takes any spatial size; torch.export, ONNX and tracing fix it, as the halving depends on it.
        """
        stages = (self.encoder, self.widen, self.narrow, self.decoder, self.head or [nn.Identity()])
        lists = (nn.ModuleList(dense_copy(part) for part in stage) for stage in stages)
        return DenseUNet(dense_copy(self.stem), *lists).train(self.training)

    def __prepare_scriptable__(self) -> DenseUNet:
        """What `torch.jit.script`, and so MONAI's `ckpt_export`, compiles in place of this network."""
        return self.to_dense()


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
