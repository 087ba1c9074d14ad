"""From the world frame to the voxel frame of the current affine, and the check that it is still current."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from dmri_monai.gradients import grid_rotation
from dmri_monai.transforms.rows import like

__all__ = ["ToVoxelFramed", "check_voxel_frame", "fix_voxel_frame", "forget_voxel_frame", "voxel_rotation"]

TOLERANCE_DEGREES = 0.1
# these move voxels, or may, and leave the affine as it is
UNTRACKED = ("Transpose", "Lambda", "RandLambda")


def voxel_rotation(image: MetaTensor, caller: str, allow_lambda: bool = False) -> Tensor:
    """(3, 3) rotation Q of the current affine of `image` (C, X, Y, Z), v_world = Q v_voxel, float64, CPU.

    Refuses what would make it wrong: TypeError for a plain tensor; ValueError for pending lazy operations and
    for transforms in the trace that move voxels without the affine (a Lambda may be allowed, if it keeps
    voxels in place).
    """
    if not isinstance(image, MetaTensor):
        raise TypeError(
            f"{caller}: image is a {type(image).__name__}, expected a MetaTensor, which carries an affine"
        )
    if image.pending_operations:
        n = len(image.pending_operations)
        raise ValueError(f"{caller}: {n} pending lazy operations; call it after ApplyPendingd, in a Compose")
    for name in operation_names(image):
        base = name.removesuffix("d")
        if base in UNTRACKED and not (allow_lambda and base.endswith("Lambda")):
            raise ValueError(
                f"{caller}: {name} was applied, which moves voxels without the affine; see docs/frames.md"
            )
    check_voxel_frame(image)
    return grid_rotation(image.affine.detach().cpu())


def operation_names(image: MetaTensor, start: int = 0) -> list[str]:
    """Class names of the operations applied to one item's `image`, from number `start` on."""
    operations = image.applied_operations[start:]
    return [str(op.get("class", "unknown")) for op in operations if isinstance(op, Mapping)]


def fix_voxel_frame(image: MetaTensor, rotation: Tensor) -> None:
    """Record that something beside or inside `image` is expressed in the voxel frame `rotation` (3, 3)."""
    image.meta["voxel_frame"] = rotation.clone()
    image.meta["voxel_frame_step"] = len(image.applied_operations)


def forget_voxel_frame(image: MetaTensor) -> None:
    """Drop the record of a frame: what `image` holds is no longer bound to its grid, or no harmonics any more."""
    for name in ("voxel_frame", "voxel_frame_step", "irreps"):
        image.meta.pop(name, None)


def check_voxel_frame(image: Any, name: str = "image") -> None:
    """Raise ValueError if the voxel frame recorded in `image` is more than 0.1° from that of its affine.

    `image`: one item (C, X, Y, Z) or a batch (B, C, X, Y, Z).  Without a record there is nothing to check.
    """
    if not isinstance(image, MetaTensor) or "voxel_frame" not in image.meta:
        return
    recorded = torch.as_tensor(image.meta["voxel_frame"]).detach().cpu().double()
    affines = torch.as_tensor(image.affine).detach().cpu()
    batched = recorded.ndim == 3
    for b, frame in enumerate(recorded if batched else [recorded]):
        current = grid_rotation(affines[b] if affines.ndim == 3 else affines)
        if _angle_degrees(frame, current) > TOLERANCE_DEGREES:
            raise ValueError(_stale_message(image, name, b if batched else None, frame, current))


def _angle_degrees(a: Tensor, b: Tensor) -> float:
    """Angle between two frames; 180 where one is a mirror image of the other."""
    relative = a.T @ b
    if torch.linalg.det(relative) < 0:
        return 180.0
    chord = (relative - torch.eye(3, dtype=relative.dtype)).norm() / math.sqrt(8.0)
    return math.degrees(2 * math.asin(min(1.0, float(chord))))


def _stale_message(image: MetaTensor, name: str, item: int | None, frame: Tensor, current: Tensor) -> str:
    step, operations = image.meta.get("voxel_frame_step", 0), image.applied_operations
    if item is not None:
        step, operations = int(torch.as_tensor(step).flatten()[item]), operations[item]
    between = [str(op.get("class", "unknown")) for op in operations[int(step) :] if isinstance(op, Mapping)]
    mirrored = torch.linalg.det(frame.T @ current) < 0
    turn = "mirrored" if mirrored else f"turned by {_angle_degrees(frame, current):.1f}°"
    where = "" if item is None else f" (item {item})"
    return (
        f"{name}{where}: its directions were fixed to a voxel frame that has since been {turn} "
        f"(more than {TOLERANCE_DEGREES}°) by {between or 'an unknown change of the affine'}; "
        "move spatial transforms before ToVoxelFramed and SphericalHarmonicsd"
    )


class ToVoxelFramed(MapTransform):
    """Add `bvecs_voxel` (N, 3): the b-vectors in the voxel frame of the current affine of the `keys`.

    v_voxel = Q^T v_world.  The frame is recorded in the image and checked later (:func:`check_voxel_frame`).
    Applying it twice is harmless.  allow_lambda: a Lambda in the trace keeps the voxels in place.  Raises as
    :func:`voxel_rotation`; ValueError without b-vectors, or where the grids of several `keys` are turned differently.
    """

    def __init__(
        self, keys: KeysCollection = "image", allow_lambda: bool = False, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.allow_lambda = allow_lambda

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item, first = dict(data), None
        for key in self.key_iterator(item):
            image = item[key]
            if "bvecs" not in item:
                raise ValueError("ToVoxelFramed: the item has no bvecs; load the scan with LoadDWId")
            if isinstance(image, MetaTensor):
                image = item[key] = like(image, image)  # the caller's meta data stay as they are
                if "irreps" not in image.meta:  # the vectors are made anew: an older record of them is void
                    image.meta.pop("voxel_frame", None)
            rotation = voxel_rotation(image, "ToVoxelFramed", self.allow_lambda)
            first = rotation if first is None else first
            if _angle_degrees(first, rotation) > TOLERANCE_DEGREES:
                raise ValueError(f"ToVoxelFramed: the grid of {key!r} is turned against that of another key")
            bvecs = torch.as_tensor(item["bvecs"])
            item["bvecs_voxel"] = (bvecs.double().cpu() @ rotation).to(bvecs)
            fix_voxel_frame(image, rotation)
        return item
