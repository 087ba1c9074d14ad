"""Distances between surfaces in millimetres."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import HausdorffDistanceMetric
from torch import Tensor

__all__ = ["HausdorffDistanceMM"]


class HausdorffDistanceMM(HausdorffDistanceMetric):
    """MONAI's Hausdorff distance in mm; MONAI's own handler and metric give it in voxels.

    y_pred, y: (B, C, X, Y, Z) of 0 and 1, y a MetaTensor, whose affine gives the voxel sizes.  percentile: 95 by
    default, None for the greatest distance.  Infinite or NaN for a class without voxels, as in MONAI.
    Raises TypeError for a label without an affine.
    """

    def __init__(self, include_background: bool = False, percentile: float | None = 95.0) -> None:
        super().__init__(include_background=include_background, percentile=percentile)

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **_: Any) -> Tensor:
        if not isinstance(y, MetaTensor):
            raise TypeError(f"HausdorffDistanceMM: the label is a {type(y).__name__}, expected a MetaTensor")
        affine = torch.as_tensor(y.affine).double().cpu()
        spacing = affine[..., :3, :3].norm(dim=-2).expand(len(y), 3).tolist()
        distances: Tensor = super()._compute_tensor(y_pred, y, spacing=spacing)
        return distances
