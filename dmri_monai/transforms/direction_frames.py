"""Direction-valued labels and predictions: between world frame, voxel frame and what can be interpolated."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from e3nn import o3
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from dmri_monai.qspace.direction_sets import dyads_to_peaks, peaks_to_dyads
from dmri_monai.qspace.irreps_rotation import rotate_irreps
from dmri_monai.qspace.tensor import rotate_tensor
from dmri_monai.transforms.frames import fix_voxel_frame, forget_voxel_frame, voxel_rotation
from dmri_monai.transforms.rows import like, plain, with_meta

__all__ = [
    "DirectionsToVoxelFramed",
    "DirectionsToWorldFramed",
    "DyadsToPeaksd",
    "PeaksToDyadsd",
    "SwapLeftRightd",
    "turn_directions",
]

WIDTH = {"peaks": 3, "tensors": 6, "dyads": 6}


def turn_directions(field: Tensor, kind: str, rotation: Tensor) -> Tensor:
    """Turn a field of directions (C, X, Y, Z) by `rotation` (3, 3).

    kind: "peaks" (3n: x y z each; NaN stays), "tensors" or "dyads" (6n: xx yy zz xy xz yz each), or e3nn
    irreps such as "1x0e+1x2e+1x4e" for harmonics.  Raises ValueError where the channels do not fit.
    """
    width = WIDTH.get(kind)
    if width is None:
        check_kind(kind)
        return rotate_irreps(field.unsqueeze(0), kind, rotation).squeeze(0)
    if len(field) % width:
        raise ValueError(f"{kind} have {len(field)} channels, expected a multiple of {width}")
    parts = field.unflatten(0, (-1, width))
    if kind == "peaks":
        return torch.einsum("ij,nj...->ni...", rotation.to(field), parts).flatten(0, 1)
    return rotate_tensor(parts, rotation).flatten(0, 1)


def check_kind(kind: str) -> str:
    """`kind` of :func:`turn_directions`, or ValueError."""
    if kind not in WIDTH:
        try:
            o3.Irreps(kind)
        except ValueError as error:
            raise ValueError(f"kind must be one of {sorted(WIDTH)} or e3nn irreps, got {kind!r}") from error
    return kind


class DirectionsToVoxelFramed(MapTransform):
    """Turn direction labels from the world frame into the voxel frame of their current affine: a network's
    target.

    kind: as in :func:`turn_directions`.  The frame is recorded and checked like that of the image.  Spatial
    transforms come before, and need no care except in resampling (peaks by nearest neighbour, or as dyads), because
    vectors in the world frame do not change when the grid does.  allow_lambda: a Lambda in the
    trace keeps the voxels in place.  Raises as :func:`voxel_rotation`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        kind: str = "peaks",
        allow_lambda: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.kind, self.allow_lambda = check_kind(kind), allow_lambda

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            rotation = voxel_rotation(item[key], "DirectionsToVoxelFramed", self.allow_lambda)
            if item[key].meta.get("direction_frame") == "voxel":
                raise ValueError(f"{key!r} is in the voxel frame already")
            irreps = item[key].meta.get("irreps")
            if irreps is not None and self.kind in WIDTH:
                raise ValueError(f"{key!r} holds harmonics, not {self.kind}: give kind={irreps!r}")
            item[key] = like(item[key], turn_directions(item[key].as_tensor(), self.kind, rotation.T))
            item[key].meta["direction_frame"] = "voxel"
            fix_voxel_frame(item[key], rotation)
        return item


class DirectionsToWorldFramed(MapTransform):
    """Turn predicted directions from the voxel frame of their grid into the world frame, before anything is
    resampled.

    kind: as in :func:`turn_directions`.  ref_key: the image whose affine a plain tensor belongs to (and whose
    meta data it gets).  Raises ValueError where the frame recorded is not the current one, or the field is in
    the world frame.
    """

    def __init__(
        self,
        keys: KeysCollection,
        kind: str = "peaks",
        ref_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.kind, self.ref_key = check_kind(kind), ref_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            field = item[key]
            if self.ref_key is not None:
                field = like(item[self.ref_key], torch.as_tensor(field).as_subclass(Tensor))
                field.meta["direction_frame"] = "voxel"
            rotation = voxel_rotation(field, "DirectionsToWorldFramed", allow_lambda=True)
            if field.meta.get("direction_frame") == "world":
                raise ValueError(f"{key!r} is in the world frame already")
            item[key] = like(field, turn_directions(field.as_tensor(), self.kind, rotation))
            forget_voxel_frame(item[key])
            item[key].meta["direction_frame"] = "world"
        return item


class PeaksToDyadsd(MapTransform):
    """Peaks (3n, X, Y, Z), NaN or 0 for none, to dyads (6n, X, Y, Z), which can be interpolated."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = with_meta(item[key], peaks_to_dyads(plain(item[key])))
        return item


class DyadsToPeaksd(MapTransform):
    """Dyads (6n, X, Y, Z) to peaks (3n, X, Y, Z); NaN where a peak is not longer than `min_length`."""

    def __init__(
        self, keys: KeysCollection, min_length: float = 0.0, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.min_length = min_length

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = with_meta(item[key], dyads_to_peaks(plain(item[key]), self.min_length))
        return item


class SwapLeftRightd(MapTransform):
    """Swap left and right classes of a label map where its grid mirrors the anatomy.

    A flip moves voxels and affine together, so a left hemisphere keeps its label.  A network that sees only
    voxels cannot know that its brain is mirrored: there, "left" should name what looks left.  The grid is
    mirrored when its affine has det < 0 (a scan stored LAS, or RAS and flipped once); `pairs` of classes are
    then exchanged.
    """

    def __init__(
        self, keys: KeysCollection, pairs: Sequence[tuple[int, int]], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        flat = [c for pair in pairs for c in pair]
        if len(flat) != 2 * len(pairs) or len(set(flat)) != len(flat):
            raise ValueError(f"pairs must hold different classes two by two, got {list(pairs)}")
        self.pairs = [(int(a), int(b)) for a, b in pairs]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            label = item[key]
            if not isinstance(label, MetaTensor):
                raise TypeError(
                    f"{key!r} is a {type(label).__name__}, expected a MetaTensor, which has an affine"
                )
            rotation = voxel_rotation(label, "SwapLeftRightd", allow_lambda=True)
            if torch.linalg.det(rotation) < 0:
                item[key] = like(label, self._swapped(label.as_tensor()))
        return item

    def _swapped(self, label: Tensor) -> Tensor:
        out = label.clone()
        for a, b in self.pairs:
            out[label == a], out[label == b] = b, a
        return out
