"""The wiring of `AnyProtocolUNet`, and the plain network of the same wiring that is exported.

Both classes can be compiled by TorchScript, which knows no generators, no `zip(strict=...)` and no globals.
"""

from __future__ import annotations

from math import pi, sqrt

import torch
from torch import Tensor, nn

from dmri_monai.networks.wiring import DenseUNet
from dmri_monai.qspace.fibre_density import LEAST_FRACTION

__all__ = ["DenseAnyProtocol", "VoxelsFirst"]

CHUNK = 256  # voxels at a time: values on the sphere stay in the cache


class VoxelsFirst(nn.Module):
    """What each voxel of a volume tells by itself, and how the answer of its surroundings is added to that.

    slots, l_shells: of the input's shells.  repeats: dimension of each irrep of the answer, for its gate.  neighbours:
    layers by which the answer, a density, is averaged with those around it.
    A subclass says in `voxels` what a voxel tells.
    """

    def __init__(self, slots: int, l_shells: int, repeats: list[int], neighbours: nn.ModuleList) -> None:
        super().__init__()
        self.slots, self.l_shells, self.repeats, self.chunk = slots, l_shells, repeats, CHUNK
        self.neighbours, self.answers = neighbours, sum(repeats)
        self.least = LEAST_FRACTION  # of fibres in a voxel, below which they have no shape
        self.integral = sqrt(4 * pi)  # of the harmonic l = 0
        # of every slot's l = 0, presence, b, log n, l = 2, l = 4, ...
        self.dims = [1, 1, 1, 1] + [2 * degree + 1 for degree in range(2, l_shells + 1, 2)]

    def voxels(self, values: Tensor) -> Tensor:
        """(B, C, V) -> (B, D, V)."""
        raise NotImplementedError

    def parts(self, values: Tensor) -> Tensor:
        """(C, V) -> (D, V), by chunks."""
        found: list[Tensor] = []
        for part in values.split(self.chunk, dim=1):
            found.append(self.voxels(part.unsqueeze(0))[0])
        return torch.cat(found, dim=1)

    def volume(self, image: Tensor) -> Tensor:
        """(B, C, X, Y, Z) -> (B, D, X, Y, Z): what each voxel tells by itself."""
        used = self.has_signal(image).flatten(1)
        items: list[Tensor] = []
        for b in range(image.shape[0]):
            items.append(self.item(image[b].flatten(1), used[b]))
        return torch.stack(items).unflatten(2, image.shape[2:])

    def has_signal(self, image: Tensor) -> Tensor:
        """(B, 1, X, Y, Z) bool: `shell_channels` sets S/S0 to 0 in air."""
        return (image[:, 1 : 1 + self.slots] != 0).any(dim=1, keepdim=True)

    def item(self, flat: Tensor, used: Tensor) -> Tensor:
        """(C, V), (V,) bool -> (D, V); all voxels that are not used get the same answer."""
        index = torch.nonzero(used).flatten()
        empty = flat[:, :1].clone()  # presence, b and log n are those of the scan
        empty[0] = 0.0
        empty[1 : 1 + self.slots] = 0.0
        empty[1 + 4 * self.slots :] = 0.0
        values = torch.cat([empty, flat.index_select(1, index)], dim=1)
        found = self.parts(values.index_select(0, self.present_channels(flat[:, 0])))
        where = torch.zeros(flat.shape[1], dtype=torch.long, device=flat.device)
        where[index] = torch.arange(1, len(index) + 1, device=flat.device)
        return found.index_select(1, where)

    def present_channels(self, voxel: Tensor) -> Tensor:
        """Indices of the channels without those of absent slots, which cost time and change nothing; voxel (C,)."""
        present = torch.nonzero(voxel[1 + self.slots : 1 + 2 * self.slots] > 0).flatten()
        if len(present) == 0:
            present = torch.zeros(1, dtype=torch.long, device=voxel.device)
        index = [torch.zeros(1, dtype=torch.long, device=voxel.device)]
        start = 1
        for dim in self.dims:
            components = torch.arange(dim, device=voxel.device)
            index.append((start + dim * present.unsqueeze(1) + components).flatten())
            start += dim * self.slots
        return torch.cat(index)

    def among_neighbours(
        self, density: Tensor, scalars: Tensor, used: Tensor, geometry: Tensor | None = None
    ) -> Tensor:
        """Densities (B, 45, X, Y, Z) whose shape is averaged with those of fibres around them; their mass stays.

        scalars (B, P, X, Y, Z): of each voxel.  used (B, 1, X, Y, Z) bool: it has signal.  geometry: of the layers.
        """
        mass = density[:, :1] * self.integral
        fibres = used & (mass > self.least)
        mass = mass.clamp(min=self.least)
        shape = density[:, 1:] / mass
        for layer in self.neighbours:
            shape = layer(shape, scalars, fibres, geometry)
        turned = torch.where(fibres, shape * mass, density[:, 1:])
        return torch.cat([density[:, :1], turned], dim=1)

    def combined(self, answer: Tensor, around: Tensor) -> Tensor:
        """v · (1 + g) + u of the voxel's answer v, (B, D, X, Y, Z), and of u and g in `around`."""
        change, gates = around.split([answer.shape[1], len(self.repeats)], dim=1)
        factors: list[Tensor] = []
        for i, repeats in enumerate(self.repeats):
            factors.append(gates[:, i : i + 1].expand(-1, repeats, -1, -1, -1))
        return torch.addcmul(answer + change, answer, torch.cat(factors, dim=1))


class DenseAnyProtocol(VoxelsFirst):
    """Plain convolutions in the wiring of an `AnyProtocolUNet`, for export: no irreps, no e3nn, no meta data.

    (B, C, X, Y, Z) -> the output at the finest level, also where the network was trained with deep supervision; voxels
    count as cubes, as no meta data says otherwise.
    voxelwise, tell, voxel_head: of that network; voxel_head and level_head are lists of one, or empty without a head.
    """

    def __init__(  # noqa: PLR0913  the parts of the network
        self,
        voxelwise: nn.Module,
        tell: nn.Module,
        context: DenseUNet,
        voxel_head: nn.ModuleList,
        level_head: nn.ModuleList,
        neighbours: nn.ModuleList,
        told: int,
        slots: int,
        l_shells: int,
        repeats: list[int],
    ) -> None:
        super().__init__(slots, l_shells, repeats, neighbours)
        self.voxelwise, self.tell, self.context, self.told = voxelwise, tell, context, told
        self.voxel_head, self.level_head = voxel_head, level_head

    def forward(self, image: Tensor) -> Tensor:
        fields = self.volume(image)
        told = fields[:, : self.told]
        features = self.context.features(told)[0]
        output = torch.cat([features, told], dim=1)
        answer = fields[:, self.told :]
        if len(self.neighbours) > 0:
            density, scalars = answer[:, : self.answers], answer[:, self.answers :]
            answer = self.among_neighbours(density, scalars, self.has_signal(image))
        for head in self.level_head:
            output = self.combined(answer, head(features))
        return output

    def voxels(self, values: Tensor) -> Tensor:
        scalars, functions = self.voxelwise(values)
        found: list[Tensor] = [self.tell(scalars, functions)]
        for head in self.voxel_head:
            found.append(head(scalars, functions))
        if len(self.neighbours) > 0:
            found.append(scalars.to(found[0].dtype))
        return torch.cat(found, dim=1)
