"""Whether two volumes share a grid, voxel by voxel."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

__all__ = ["check_same_grid"]

TOLERANCE = 0.1  # of the shortest voxel edge: rounding in headers is far less, a real shift more


def check_same_grid(image: Tensor, other: Tensor, name: Hashable, caller: str) -> None:
    """Raise ValueError where `other` (K, X, Y, Z) is not on the grid of `image` (C, X, Y, Z).

    It has operations pending, another shape, or an affine that puts a corner of the grid more than a tenth of a voxel
    elsewhere.  Affines are compared where both have one.  `name` and `caller` stand in the message, and both files as
    far as the meta data tell.
    """
    file = _files(image, other)
    if isinstance(other, MetaTensor) and other.pending_operations:
        n = len(other.pending_operations)
        raise ValueError(
            f"{caller}: {name!r} has {n} pending lazy operations; apply them first (ApplyPendingd){file}"
        )
    if other.shape[1:] != image.shape[1:]:
        grids = f"{tuple(other.shape[1:])}, the image {tuple(image.shape[1:])}"
        raise ValueError(f"{caller}: {name!r} has grid {grids}{file}")
    if isinstance(image, MetaTensor) and isinstance(other, MetaTensor):
        gap, edge = _largest_gap_mm(image, other)
        if gap > TOLERANCE * edge:
            raise ValueError(
                f"{caller}: {name!r} lies up to {gap:.2g} mm beside the image; resample it to the image's grid{file}"
            )


def _largest_gap_mm(image: MetaTensor, other: MetaTensor) -> tuple[float, float]:
    """Largest distance between corresponding corners of the two grids, and the shortest voxel edge of `image`."""
    corners = torch.cartesian_prod(*(torch.tensor([0.0, n - 1.0]).double() for n in image.shape[1:]))
    ours, theirs = (torch.as_tensor(x.affine).detach().cpu().double() for x in (image, other))
    moved = corners @ (ours - theirs)[:3, :3].T + (ours - theirs)[:3, 3]
    return float(moved.norm(dim=1).max()), float(ours[:3, :3].norm(dim=0).min())


def _files(image: Tensor, other: Tensor) -> str:
    """The files of both, as far as they are known: ": mask.nii.gz, of scan.nii.gz"."""
    theirs, ours = (getattr(x, "meta", {}).get("filename_or_obj") for x in (other, image))
    if not theirs:
        return ""
    return f": {theirs}, of {ours}" if isinstance(ours, str) and ours != theirs else f": {theirs}"
