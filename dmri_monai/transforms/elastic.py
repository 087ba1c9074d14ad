"""Elastic deformation of diffusion scans with local reorientation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import ensure_tuple
from torch import Tensor

from dmri_monai.gradients import b0_threshold_of
from dmri_monai.qspace.b0 import b0_reference, mean_b0
from dmri_monai.qspace.reorientation import principal_rotation, push_forward, reorient_signal
from dmri_monai.qspace.tensor import fit_tensor, tensor_metrics
from dmri_monai.transforms.frames import voxel_rotation
from dmri_monai.transforms.rows import item_table, like, plain, with_meta
from dmri_monai.transforms.same_grid import check_same_grid
from dmri_monai.transforms.warp import SAFE_FRACTION, Warp, bspline_warp, control_shape, resample

__all__ = ["RandElasticDWId"]


class RandElasticDWId(RandomizableTransform, MapTransform):
    """Warp raw scans (N, X, Y, Z) smoothly in millimetres and turn the signal of every voxel with its fibre.

    The warp is a cubic B-spline with control points every `control_mm`, displaced by up to `strength` times
    0.4 of
    that: it cannot fold at any strength in [0, 1]; 0 is the identity.  The signal is turned by preservation
    of the principal direction (V1 of the warped scan's tensor; finite strain alone where FA < 0.2), through
    harmonics up to `l_max`; see :mod:`dmri_monai.qspace.reorientation`.
    label_keys: class maps, taken from the nearest voxel.  peaks_keys: peaks (3n, X, Y, Z) in the world frame,
    nearest voxel, turned to J v with their length kept.  All share the grid of the image: ValueError where one
    does not, is missing, or holds peaks in the voxel frame.  The warp leaves no trace: `Invertd` does not undo it.
    allow_lambda: a Lambda in the trace keeps the voxels in place.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        prob: float = 0.1,
        *,
        control_mm: float = 30.0,
        strength: float = 0.5,
        label_keys: str | Sequence[str] = (),
        peaks_keys: str | Sequence[str] = (),
        l_max: int = 4,
        allow_lambda: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must lie in [0, 1], got {strength}")
        if not control_mm > 0:
            raise ValueError(f"control_mm must be positive, got {control_mm}")
        self.control_mm, self.strength, self.l_max = control_mm, strength, l_max
        self.label_keys, self.peaks_keys = ensure_tuple(label_keys), ensure_tuple(peaks_keys)
        self.allow_lambda = allow_lambda
        self.control = torch.zeros(3, 0, 0, 0)

    def randomize(self, data: tuple[int, ...]) -> None:
        """Draw the displacements (in units of control_mm) of `data` = (n1, n2, n3) control points."""
        super().randomize(None)
        if self._do_transform:
            limit = SAFE_FRACTION * self.strength
            self.control = torch.from_numpy(self.R.uniform(-limit, limit, size=(3, *data)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        keys = list(self.key_iterator(item))
        if not keys:
            return item
        rotation = voxel_rotation(item[keys[0]], "RandElasticDWId", self.allow_lambda)
        self._check(item, keys)
        size = tuple(item[keys[0]].shape[1:])
        stretch = rotation.T @ item[keys[0]].affine[:3, :3].cpu().double()
        self.randomize(control_shape(size, stretch.norm(dim=0), self.control_mm))
        if self._do_transform and self.strength > 0:
            self._apply(item, keys, bspline_warp(self.control, size, stretch, self.control_mm), rotation)
        return item

    def _apply(self, item: dict[Hashable, Any], keys: list[Hashable], warp: Warp, rotation: Tensor) -> None:
        for key in keys:
            bvals, bvecs = item_table(item, key, "RandElasticDWId")
            table = (bvals, bvecs.double().cpu() @ rotation)
            item[key] = like(item[key], _warped_scan(item[key], table, warp, self.l_max))
        for key in self._present(item, self.label_keys):
            labels = plain(item[key])
            moved = resample(labels.double(), warp.source, "nearest", "zeros").to(labels.dtype)
            item[key] = with_meta(item[key], moved)
        for key in self._present(item, self.peaks_keys):
            item[key] = with_meta(item[key], _warped_peaks(plain(item[key]), warp, rotation))

    def _check(self, item: dict[Hashable, Any], keys: list[Hashable]) -> None:
        """Everything that moves lies on the grid of the first image, and peaks are in the world frame."""
        image = item[keys[0]]
        for key in (*keys, *self._present(item, (*self.label_keys, *self.peaks_keys))):
            check_same_grid(image, torch.as_tensor(item[key]), key, "RandElasticDWId")
        for key in self._present(item, self.peaks_keys):
            if getattr(item[key], "meta", {}).get("direction_frame") == "voxel":
                raise ValueError(f"RandElasticDWId: {key!r} is in the voxel frame, expected the world frame")

    def _present(self, item: dict[Hashable, Any], keys: Sequence[str]) -> list[str]:
        missing = [key for key in keys if key not in item]
        if missing and not self.allow_missing_keys:
            raise ValueError(f"RandElasticDWId: the item has no {missing[0]!r}")
        return [key for key in keys if key in item]


def _warped_scan(image: MetaTensor, table: tuple[Tensor, Tensor], warp: Warp, l_max: int) -> Tensor:
    """(N, X, Y, Z) signal moved by the warp, then turned voxel by voxel where there is any."""
    bvals, bvecs_voxel = table
    moved = resample(image.as_tensor().float(), warp.source, "bilinear", "zeros")
    threshold = b0_threshold_of(image)
    b0 = mean_b0(moved, bvals, threshold)
    inside = b0 > 1e-2 * b0_reference(b0)
    tensor = fit_tensor(
        moved.unsqueeze(0), bvals.unsqueeze(0), bvecs_voxel.unsqueeze(0), brain=inside[None, None]
    )
    metrics = tensor_metrics(tensor[:, :, inside].unsqueeze(-1).unsqueeze(-1))
    fa, v1 = metrics.fa[0, 0, :, 0, 0], metrics.v1[0, :, :, 0, 0].T
    voxels = inside.flatten().nonzero().flatten()
    jacobian = warp.jacobian.to(moved).flatten(0, 2).index_select(0, voxels)
    rotations = principal_rotation(jacobian, v1, fa)
    turned = reorient_signal(moved.flatten(1), bvals, bvecs_voxel, rotations, l_max, threshold, voxels=voxels)
    return turned.view_as(moved).clamp_(min=0.0)


def _warped_peaks(peaks: Tensor, warp: Warp, rotation: Tensor) -> Tensor:
    """(3n, X, Y, Z) peaks of the nearest source voxel, pushed forward; world frame in and out."""
    moved = resample(peaks.double(), warp.source, "nearest", "zeros")
    q = rotation.to(moved)
    jacobian = (q @ warp.jacobian.to(moved) @ q.T).flatten(0, 2)
    vectors = moved.unflatten(0, (-1, 3)).flatten(2).movedim(1, 2)  # (n, V, 3)
    turned = torch.stack([push_forward(jacobian, v) for v in vectors])
    return turned.movedim(2, 1).unflatten(2, peaks.shape[1:]).flatten(0, 1).to(peaks.dtype)
