"""`NeighbourAttention`: fields averaged over a voxel and those around it, by how well these go with it.

It is also compiled by TorchScript, which knows neither comprehensions over two lists nor globals.
"""

from __future__ import annotations

from itertools import product
from math import pi
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from dmri_monai.equivariant.finite_values import is_recording
from dmri_monai.so3 import Constants, as_irreps, spherical_harmonics

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["NeighbourAttention"]

OFFSETS = [offset for offset in product((-1, 0, 1), repeat=3) if any(offset)]
FIRST_LEVEL = -4.0  # log weight of a neighbour before training, beside 0 of the voxel itself
CHUNK = 512  # voxels at a time: their neighbours stay in the cache
TRAINING_CHUNK = 4096  # bounds the memory for gradients


class NeighbourAttention(nn.Module):
    """Mean of the fields of a voxel and of its 26 neighbours, with weights that the layer learns.

    forward(x, scalars, there, geometry=None): x (B, irreps.dim, X, Y, Z); scalars (B, S, X, Y, Z), invariants that
    weights may depend on; there (B, 1, X, Y, Z) bool, the voxels that count: others are no neighbours, and keep their
    x -> (B, irreps.dim, X, Y, Z).  geometry (B, 26, irreps.dim + 1): where the neighbours lie, see :meth:`geometry`;
    None for cubic voxels; one item for all or one each.

        y(v) = (x(v) + sum_n w_n x(n)) / (1 + sum_n w_n),    w_n = exp(level + 5 tanh(f / 5))

    f is a small network of invariants: scalars and lengths of both voxels, the cosines between their fields, degree by
    degree, what both fields are along the line from voxel to neighbour (a fibre goes on along itself), and the distance
    relative to that of the nearest neighbours.  A mean of fields with invariant weights is a field again: the layer
    commutes exactly with the rotations and reflections that map the grid to itself, and where the grid is turned too
    with all of them.  Irreps of the other parity than (-1)^l have no value along a line; they are averaged like
    the rest.  Edge-preserving averages by similarity: Tomasi and Manduchi 1998, doi:10.1109/ICCV.1998.710815.
    """

    def __init__(self, irreps: str | Irreps, scalars: int = 0, *, hidden: int = 24) -> None:
        super().__init__()
        fields = as_irreps(irreps)
        copies = [(ir.l, ir.p) for mul, ir in fields for _ in range(mul)]
        if not copies:
            raise ValueError("NeighbourAttention: no irreps to average")
        self.irreps, self.dim, self.scalars = str(fields), fields.dim, scalars
        self.degrees = [degree for degree, _ in copies]
        member = torch.block_diag(*(torch.ones(2 * degree + 1, 1) for degree in self.degrees))
        pointing = torch.tensor([degree > 0 and parity == (-1) ** degree for degree, parity in copies])
        self.constants = Constants(member=member, pointing=member[:, pointing])
        self.constants.register_buffer("steps", torch.tensor(OFFSETS), persistent=False)
        nominal = self.geometry(torch.ones(3, dtype=torch.float64))
        self.nominal = Constants(geometry=nominal)
        self.chunk = CHUNK
        invariants = scalars + len(copies)
        self.query = nn.Linear(invariants, hidden)
        self.key = nn.Linear(invariants, hidden, bias=False)
        self.pair = nn.Linear(len(copies) + 2 * int(pointing.sum()) + 1, hidden, bias=False)
        self.answer = nn.Linear(hidden, 1)
        self.level = nn.Parameter(torch.tensor(FIRST_LEVEL))
        nn.init.zeros_(self.answer.weight)
        nn.init.zeros_(self.answer.bias)

    def extra_repr(self) -> str:
        return f"{self.irreps}, scalars={self.scalars}"

    @torch.jit.unused
    def geometry(self, spacing: Tensor) -> Tensor:
        """(..., 26, irreps.dim + 1) of voxel sizes (..., 3) along x, y, z: of each neighbour the harmonics of its
        direction, component by component, and its distance relative to the nearest one's.
        """
        wide = spacing.double()
        steps = self.constants.steps.to(wide) * wide.unsqueeze(-2)
        harmonics = spherical_harmonics(steps, max(self.degrees))
        parts = [harmonics[degree] / (4 * pi) ** 0.5 for degree in self.degrees]
        distance = steps.norm(dim=-1, keepdim=True)
        return torch.cat([*parts, distance / distance.amin(-2, keepdim=True)], dim=-1)

    def forward(self, x: Tensor, scalars: Tensor, there: Tensor, geometry: Tensor | None = None) -> Tensor:
        if x.ndim != 5 or x.shape[1] != self.dim or scalars.shape[1] != self.scalars:
            raise ValueError(
                f"NeighbourAttention: fields {list(x.shape)} and scalars {list(scalars.shape)}, expected 5 axes, "
                f"{self.dim} and {self.scalars} channels"
            )
        if geometry is not None and (geometry.ndim != 3 or geometry.shape[0] not in (1, x.shape[0])):
            raise ValueError(
                f"NeighbourAttention: geometry {list(geometry.shape)}, expected that of voxel sizes (1, 3) or "
                f"({x.shape[0]}, 3)"
            )
        items: list[Tensor] = []
        there = there.to(torch.bool)
        for b in range(x.shape[0]):
            lines = self.nominal.geometry if geometry is None else geometry[b % geometry.shape[0]]
            items.append(self.item(x[b], scalars[b], there[b, 0], lines.to(x.dtype)))
        return torch.stack(items)

    def item(self, x: Tensor, scalars: Tensor, there: Tensor, lines: Tensor) -> Tensor:
        """(dim, X, Y, Z) of one item."""
        size, flat = x.shape[1:], there.flatten()
        if torch.jit.is_scripting():
            rows = torch.nonzero(flat).flatten()
        else:  # a graph cannot depend on which voxels count
            rows = torch.arange(len(flat), device=x.device) if is_recording() else flat.nonzero().flatten()
        fields, known = x.flatten(1).T[rows], scalars.flatten(1).T[rows]
        counts = torch.cat([flat[rows].to(x.dtype), torch.zeros(1, dtype=x.dtype, device=x.device)])
        lengths = (fields.square() @ self.constants.member.to(x.dtype) + 1e-6).sqrt()
        invariants = torch.cat([known, lengths], dim=1)
        # the row after the last stands for what is no voxel
        key = functional.pad(self.key(invariants), [0, 0, 0, 1])
        padded = functional.pad(fields, [0, 0, 0, 1])
        inverse = 1 / lengths
        inverses = functional.pad(inverse, [0, 0, 0, 1])
        given = (fields, self.query(invariants), inverse, self.around(rows, size[0], size[1], size[2]))
        found = self.in_parts(given, (padded, key, inverses, counts, lines))
        out = x.flatten(1).clone()
        new = torch.where(flat[rows].unsqueeze(1), found.to(x.dtype), fields)
        return out.index_copy(1, rows, new.T).unflatten(1, size)

    def in_parts(
        self,
        voxels: tuple[Tensor, Tensor, Tensor, Tensor],
        lists: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    ) -> Tensor:
        """(V, dim): `averaged` of a few voxels at a time; where gradients are wanted it is computed again for them."""
        if not torch.jit.is_scripting() and torch.is_grad_enabled():
            return self._recomputed(voxels, lists)
        own, query, inverse, around = voxels
        found: list[Tensor] = [own[:0]]
        for first in range(0, len(own), self.chunk):
            end = first + self.chunk
            part = (own[first:end], query[first:end], inverse[first:end], around[first:end])
            found.append(self.averaged(part, lists))
        return torch.cat(found)

    @torch.jit.unused
    def _recomputed(
        self,
        voxels: tuple[Tensor, Tensor, Tensor, Tensor],
        lists: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    ) -> Tensor:
        if len(voxels[0]) <= TRAINING_CHUNK or is_recording():
            return self.averaged(voxels, lists)
        parts = zip(*(values.split(TRAINING_CHUNK) for values in voxels), strict=True)
        return torch.cat([checkpoint(self.averaged, part, lists, use_reentrant=False) for part in parts])

    def around(self, rows: Tensor, a: int, b: int, c: int) -> Tensor:
        """(V, 26) places in the list `rows` of the neighbours of each, V for none; on a grid of a, b, c voxels."""
        i, j, k = rows // (b * c), rows // c % b, rows % c
        padded = ((i + 1) * (b + 2) + j + 1) * (c + 2) + k + 1
        places = torch.full([(a + 2) * (b + 2) * (c + 2)], len(rows), dtype=torch.int64, device=rows.device)
        places = places.index_copy(0, padded, torch.arange(len(rows), device=rows.device))
        steps = self.constants.steps
        moves = (steps[:, 0] * (b + 2) + steps[:, 1]) * (c + 2) + steps[:, 2]
        return places[padded.unsqueeze(1) + moves]

    def averaged(
        self,
        voxels: tuple[Tensor, Tensor, Tensor, Tensor],
        lists: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    ) -> Tensor:
        """(v, dim) of v voxels: their fields, query, inverse lengths and neighbours; lists: of all voxels, and where
        the neighbours lie.
        """
        own, query, inverse, around = voxels
        fields, key, inverses, counts, lines = lists
        neighbours = fields[around]  # (v, 26, dim)
        member, pointing = self.constants.member.to(own.dtype), self.constants.pointing.to(own.dtype)
        directions, distance = lines[:, :-1], lines[:, -1:]
        cosines = (own.unsqueeze(1) * neighbours) @ member * inverse.unsqueeze(1) * inverses[around]
        features = torch.cat(
            [
                cosines,
                (own.unsqueeze(1) * directions) @ pointing,
                (neighbours * directions) @ pointing,
                distance.expand(len(own), -1, -1),
            ],
            dim=2,
        )
        hidden = functional.silu(query.unsqueeze(1) + key[around] + self.pair(features))
        answer = 5.0 * torch.tanh(self.answer(hidden) / 5.0)
        weights = torch.exp(self.level + answer) * counts[around].unsqueeze(2)
        return (own + (weights * neighbours).sum(1)) / (1 + weights.sum(1))
