"""FA and principal direction of a scan, for pictures and quality checks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable, grid_rotation
from dmri_monai.qspace.tensor import GAUSSIAN_B_MAX, fit_tensor, tensor_design, tensor_metrics

__all__ = ["DirectionMaps", "direction_maps", "tensor_volumes"]


@dataclass(frozen=True)
class DirectionMaps:
    """`fa` (X, Y, Z) in [0, 1] and principal directions `v1_world` (3, X, Y, Z), unit, sign arbitrary."""

    fa: Tensor
    v1_world: Tensor


def tensor_volumes(table: GradientTable) -> Tensor | None:
    """(N,) bool: b0 and the shells up to b = 1600 s/mm2 (else the lowest with enough directions).

    None when no choice leaves six directions that determine a tensor.
    """
    shells = table.shells()
    low = [s.indices for s in shells if s.bval <= GAUSSIAN_B_MAX]
    for choice in [low, *[[s.indices] for s in shells], [s.indices for s in shells]]:
        rows = table.b0_mask.clone()
        for indices in choice:
            rows[indices] = True
        if _determines_tensor(table.select(rows)):
            return rows
    return None


def direction_maps(image: Tensor, table: GradientTable, affine: Tensor, mask: Tensor) -> DirectionMaps | None:
    """FA and V1 of `image` (N, X, Y, Z) inside `mask` (X, Y, Z) bool, zero outside; None without a tensor.

    It is fitted in the voxel frame of `affine` (4, 4); its principal direction is turned into the world
    frame.
    """
    rows = tensor_volumes(table)
    if rows is None or not mask.any():
        return None
    chosen = table.select(rows)
    signal = image[rows][:, mask].float()[None, :, :, None, None]
    tensor = fit_tensor(signal, chosen.bvals[None], chosen.in_voxel_frame(affine)[None])
    metrics = tensor_metrics(tensor)
    fa, v1 = torch.zeros(mask.shape), torch.zeros(3, *mask.shape)
    fa[mask] = metrics.fa.flatten().float()
    v1[:, mask] = grid_rotation(affine).float() @ metrics.v1.reshape(3, -1).float()
    return DirectionMaps(fa, v1)


def _determines_tensor(table: GradientTable) -> bool:
    try:
        tensor_design(table.bvals, table.bvecs)
    except ValueError:
        return False
    return True
