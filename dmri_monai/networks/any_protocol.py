"""`AnyProtocolUNet`: each voxel on its own, from any shells, then its surroundings."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dmri_monai.equivariant import EquivariantAvgPool3d, NeighbourAttention, SteerableConv3d, as_irreps
from dmri_monai.equivariant.finite_values import is_recording
from dmri_monai.networks.equivariant_unet import EquivariantUNet
from dmri_monai.networks.input_checks import as_plain, check_harmonics, slots_of, spacing_of, with_meta_of
from dmri_monai.networks.voxels_first import DenseAnyProtocol, VoxelsFirst
from dmri_monai.networks.voxelwise import (
    BLOCKS,
    CHANNELS,
    DENSITY,
    HIDDEN,
    SCALARS,
    SphereFeatures,
    VoxelHead,
)
from dmri_monai.networks.wiring import dense_copy
from dmri_monai.so3 import channels_of

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["AnyProtocolUNet"]

CONTEXT = "12x0e+2x2e+1x4e"  # what the surroundings are told of a voxel
SHAPE = DENSITY.removeprefix("1x0e+")  # of a density, all but its mass
SIZES: dict[str, Sequence[str] | str] = {
    "tiny": ("6x0e+1x1o+1x2e", "12x0e+2x1o+2x2e+1x4e", "24x0e+4x1o+4x2e+2x4e"),
    "small": "tiny",
    "base": "small",
}
TRAINING_CHUNK = (
    8192  # voxels whose intermediate values are kept at once; they are computed again for gradients
)


class AnyProtocolUNet(VoxelsFirst):
    """Encoder of shells and steps on the sphere at each voxel; a U-Net of the surroundings; a head of both.

    forward: (B, irreps_in.dim, X, Y, Z) as `SphericalHarmonicsd(shells="auto")` makes it, any number of shells at any
    b-values -> (B, irreps_out.dim, X, Y, Z), or a list of the decoder's levels, finest first, in training mode with
    deep supervision.

        out = v · (1 + g) + u

    v is the answer of the voxel alone, u and the scalars g those of the surroundings, both 0 before training: a head
    starts from what a voxel tells, and v passes no bottleneck.  Without `irreps_out` the output is the features of
    the U-Net and `CONTEXT`.  Equivariant as :class:`EquivariantUNet`.

    size: of the U-Net, "tiny", "small", "base" or the irreps of every level.  The other arguments: of
    :class:`SphereFeatures`, whose weights, called `voxelwise.*`, may come from a `VoxelwiseNet` (`load_voxelwise`).
    neighbours: how often v, which must then be one density (`irreps_out` 1x0e to 1x8e, even), is averaged with those
    around it (:class:`NeighbourAttention`): its shape where there are fibres, never its mass.  The size of the voxels
    is that of the image's meta data, without any they are cubes.
    Voxels without signal are all alike and computed once; the others by chunks.
    """

    def __init__(  # noqa: PLR0913  sizes
        self,
        irreps_in: str | Irreps,
        irreps_out: str | Irreps | None = None,
        size: str | Sequence[str] = "small",
        deep_supervision: bool = False,
        spacing: Sequence[float] = (1.0, 1.0, 1.0),
        *,
        channels: int = CHANNELS,
        scalars: int = SCALARS,
        hidden: int = HIDDEN,
        blocks: int = BLOCKS,
        deconvolution: bool = False,
        neighbours: int = 0,
    ) -> None:
        fields = as_irreps(irreps_in)
        if neighbours and (irreps_out is None or as_irreps(irreps_out) != as_irreps(DENSITY)):
            raise ValueError(
                f"AnyProtocolUNet: neighbours are of a density ({DENSITY}) alone, got {irreps_out}"
            )
        outputs = (
            [] if irreps_out is None else [ir.dim for mul, ir in as_irreps(irreps_out) for _ in range(mul)]
        )
        layers = (NeighbourAttention(SHAPE, scalars) for _ in range(neighbours))
        super().__init__(*slots_of(fields, type(self).__name__), outputs, nn.ModuleList(layers))
        self.expected, self.irreps_in = channels_of(fields), str(fields)
        self.told = as_irreps(CONTEXT).dim
        self.deep_supervision = deep_supervision
        self.voxelwise = SphereFeatures(channels, scalars, hidden, blocks, self.l_shells, deconvolution)
        functions = channels + deconvolution
        self.tell = VoxelHead(functions, scalars, CONTEXT)
        levels = SIZES.get(size, size) if isinstance(size, str) else size
        self.context = EquivariantUNet(CONTEXT, None, levels, spacing=spacing)
        self.pool = EquivariantAvgPool3d()
        self.irreps_features = str(as_irreps(f"{self.context.irreps_features}+{CONTEXT}"))
        self.irreps_out = self.irreps_features if irreps_out is None else str(as_irreps(irreps_out))
        self.head = nn.ModuleDict()
        if irreps_out is not None:
            self.head["voxel"] = VoxelHead(functions, scalars, irreps_out)
            self.head["levels"] = self._level_heads(as_irreps(irreps_out), spacing)

    def _level_heads(self, irreps_out: Irreps, spacing: Sequence[float]) -> nn.ModuleList:
        """One map of the U-Net's features to u and g for every level that gives an output, zero to begin with."""
        wanted = as_irreps(f"{irreps_out}+{irreps_out.num_irreps}x0e")
        levels = [as_irreps(irreps) for irreps in self.context.irreps_levels[:-1]]
        heads = nn.ModuleList()
        for irreps in levels if self.deep_supervision else levels[:1]:
            known = {ir for _, ir in irreps}
            kernel = 1 if all(ir in known for _, ir in wanted) else 3
            l_max = max(4, *(ir.l for _, ir in wanted))
            heads.append(SteerableConv3d(irreps, wanted, kernel, spacing=spacing, l_max=l_max))
            for parameter in heads[-1].parameters():
                nn.init.zeros_(parameter)
        return heads

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        check_harmonics(image, self.expected, type(self).__name__)
        fields = self.alone(as_plain(image))
        told = fields[:, : self.told]
        levels = self.context.features(told)
        if not len(self.head):
            return with_meta_of(image, torch.cat([levels[0], told], dim=1))
        answer, outputs = self.answer(image, fields[:, self.told :]), []
        heads: nn.ModuleList = self.head["levels"]  # type: ignore[assignment]
        for level, head in zip(levels, heads, strict=False):
            outputs.append(with_meta_of(image, self.combined(answer, head(level))))
            if self.deep_supervision:
                answer = self.pool(answer)
        return outputs if self.training and len(outputs) > 1 else outputs[0]

    def answer(self, image: Tensor, fields: Tensor) -> Tensor:
        """What a voxel tells by itself, averaged with its neighbours where the network has such layers."""
        if not len(self.neighbours):
            return fields
        density, scalars = fields.split([self.answers, fields.shape[1] - self.answers], dim=1)
        layer: NeighbourAttention = self.neighbours[0]  # type: ignore[assignment]
        spacing = spacing_of(image)
        geometry = None if spacing is None else layer.geometry(spacing).to(density)
        return self.among_neighbours(density, scalars, self.has_signal(as_plain(image)), geometry)

    def alone(self, image: Tensor) -> Tensor:
        """(B, C, X, Y, Z) -> (B, CONTEXT + irreps_out, X, Y, Z): what each voxel tells by itself; for `neighbours` its
        scalars, too.
        """
        if is_recording():  # a graph cannot depend on which voxels are air
            return self.voxels(image.flatten(2)).unflatten(2, image.shape[2:])
        return self.volume(image)

    def parts(self, values: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().parts(values)
        found = []
        for part in values.unsqueeze(0).split(TRAINING_CHUNK, dim=2):
            if part.shape[2] >= TRAINING_CHUNK // 2:
                found.append(checkpoint(self.voxels, part, use_reentrant=False)[0])
            else:
                found.append(self.voxels(part)[0])
        return torch.cat(found, dim=1)

    def voxels(self, values: Tensor) -> Tensor:
        scalars, functions = self.voxelwise(values)
        told: Tensor = self.tell(scalars, functions)
        if not len(self.head):
            return told
        found = [told, self.head["voxel"](scalars, functions).to(told.dtype)]
        if len(self.neighbours):
            found.append(scalars.to(told.dtype))
        return torch.cat(found, dim=1)

    def to_dense(self) -> DenseAnyProtocol:
        """An ordinary network with the same output, for export: plain convolutions, no irreps, no e3nn.

        TorchScript takes any spatial size.
        """
        voxelwise, tell = copy.deepcopy(self.voxelwise), copy.deepcopy(self.tell)
        heads = [self.head["voxel"]] if len(self.head) else []
        levels = list(self.head["levels"])[:1] if len(self.head) else []  # type: ignore[call-overload]
        dense = DenseAnyProtocol(
            voxelwise,
            tell,
            self.context.to_dense(),
            nn.ModuleList(copy.deepcopy(head) for head in heads),
            nn.ModuleList(dense_copy(head) for head in levels),
            copy.deepcopy(self.neighbours),
            self.told,
            self.slots,
            self.l_shells,
            self.repeats,
        )
        return dense.train(self.training)

    def __prepare_scriptable__(self) -> DenseAnyProtocol:
        """What `torch.jit.script`, and so MONAI's `ckpt_export`, compiles in place of this network."""
        return self.to_dense()

    def load_voxelwise(self, state: dict[str, Tensor]) -> None:
        """Take the features of a trained `VoxelwiseNet` from its state dict; RuntimeError where they do not fit."""
        prefix = "features."
        features = {
            name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
        }
        self.voxelwise.load_state_dict(features)
