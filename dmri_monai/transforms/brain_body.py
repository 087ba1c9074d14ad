"""The brain is one body: what a prediction of tissue tells far from its largest body is something else."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, affine_to_spacing
from monai.transforms import MapTransform
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from dmri_monai.transforms.rows import like, plain

__all__ = ["KeepBrainBodyd", "near_largest_body", "told_tissue"]

REACH = 1.3  # depths: how far from the core of a body its surface may lie; 1 would cut corners off
ROUNDING_MM = 1e-3  # of voxel sizes in affines


class KeepBrainBodyd(MapTransform):
    """Drop what is predicted away from the largest body of tissue, as :func:`near_largest_body` finds it.

    The prediction is class numbers (1, X, Y, Z), 0 outside; or fractions of the tissues (3, X, Y, Z), tissue where
    their sum is above 0.5; or probabilities of outside and the tissues (4, X, Y, Z), tissue where outside is not
    the largest.  Where it is dropped, classes and fractions are 0 and the probability of outside is 1.
    depth_mm: of the opening.  unless_key: an item in which this is true stays as it is.  TypeError for a prediction
    without an affine, which tells the size of voxels.
    """

    def __init__(self, keys: KeysCollection, depth_mm: float, unless_key: Hashable | None = None) -> None:
        super().__init__(keys)
        self.depth_mm, self.unless_key = depth_mm, unless_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.unless_key is not None and item.get(self.unless_key):
            return item
        for key in self.key_iterator(item):
            found = item[key]
            if not isinstance(found, MetaTensor):
                raise TypeError(f"KeepBrainBodyd: {key!r} is a {type(found).__name__}, expected a MetaTensor")
            values = plain(found)
            spacing = affine_to_spacing(found.affine).tolist()
            kept = torch.from_numpy(
                near_largest_body(told_tissue(values, "KeepBrainBodyd").cpu().numpy(), spacing, self.depth_mm)
            )
            item[key] = like(found, torch.where(kept.to(values.device), values, _nothing(values)))
        return item


def near_largest_body(
    tissue: NDArray[np.bool_], spacing_mm: Sequence[float], depth_mm: float
) -> NDArray[np.bool_]:
    """(X, Y, Z) bool: where the largest body of `tissue` (X, Y, Z) lies; everywhere without any tissue.

    A morphological opening parts bodies that touch: deep are voxels with nothing but tissue up to `depth_mm` around
    them, from centre to centre of voxels, so slices thicker than that are not parted from one another.  What lies
    beyond the field of view is not known and takes nothing away.  The core is the largest body, joined by faces, of
    what is deep (the first of equal ones), or of `tissue` itself where nothing is deep, as in a thin slab.  The body
    lies up to 1.3 depths from it; with it goes what touches its tissue and is none, such as partly filled voxels.
    """
    if not tissue.any():
        return np.ones_like(tissue)
    deep = _distance_mm(tissue, spacing_mm) > depth_mm + ROUNDING_MM
    bodies, _ = ndimage.label(deep if deep.any() else tissue)
    core = bodies == 1 + np.argmax(np.bincount(bodies.ravel())[1:])
    near = _distance_mm(~core, spacing_mm) <= REACH * depth_mm + ROUNDING_MM
    touching = ndimage.binary_dilation(tissue & near, ndimage.generate_binary_structure(3, 3))
    body: NDArray[np.bool_] = near | (touching & ~tissue)
    return body


def _distance_mm(inside: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """(X, Y, Z) mm from each voxel's centre to that of the nearest one that is not `inside`; infinite without one."""
    if inside.all():
        return np.full(inside.shape, np.inf)
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(inside, spacing_mm)
    return distance


def told_tissue(values: Tensor, caller: str) -> Tensor:
    """(X, Y, Z) bool: where a prediction (C, X, Y, Z) is tissue."""
    if len(values) == 1:
        return values[0] > 0
    if len(values) == 3:
        return values.sum(0) > 0.5
    if len(values) == 4:
        return values.argmax(0) > 0
    raise ValueError(
        f"{caller}: {len(values)} channels, expected 1 of class numbers, 3 of fractions or 4 of probabilities"
    )


def _nothing(values: Tensor) -> Tensor:
    """(C, 1, 1, 1) what `values` (C, X, Y, Z) are where there is no tissue."""
    nothing = values.new_zeros(len(values), 1, 1, 1)
    nothing[0] = len(values) == 4
    return nothing
