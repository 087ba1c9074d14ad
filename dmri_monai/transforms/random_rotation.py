"""Random rotations in millimetres."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import (
    InvertibleTransform,
    LazyTransform,
    MapTransform,
    RandomizableTransform,
    SpatialResample,
)
from monai.utils import TraceKeys, ensure_tuple_rep
from torch import Tensor

from dmri_monai.gradients import grid_rotation

__all__ = ["RandRotateMMd", "random_rotation", "rotated_affine"]


def random_rotation(random_state: np.random.RandomState, max_degrees: float = 180.0) -> Tensor:
    """(3, 3) float64 rotation, uniform on SO(3) among those of at most `max_degrees`.

    The axis is uniform on the sphere; the angle has the density (1 - cos a) of uniform rotations, cut at the
    maximum.
    """
    axis = torch.from_numpy(random_state.normal(size=3))
    limit = math.radians(max_degrees)
    target = random_state.uniform() * (limit - math.sin(limit))
    low, high = 0.0, limit
    for _ in range(60):  # a - sin a grows: halving finds the angle
        middle = (low + high) / 2
        low, high = (middle, high) if middle - math.sin(middle) < target else (low, middle)
    x, y, z = (axis / axis.norm() * (low + high) / 2).tolist()
    generator = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    rotation: Tensor = torch.linalg.matrix_exp(generator)
    return rotation


def rotated_affine(affine: Tensor, spatial_size: Sequence[int], rotation: Tensor) -> Tensor:
    """(4, 4) affine of the grid of `affine` turned by `rotation` (3, 3, voxel axes, mm) about its centre.

    With A = Q P (polar factor and symmetric stretch) the turned grid is Q R P: same spacing, same angles between the
    axes, and its voxel frame is exactly Q R, whatever the anisotropy or shear of A.
    """
    return _motion(affine, spatial_size, rotation) @ affine.detach().cpu().double()


def _motion(affine: Tensor, spatial_size: Sequence[int], rotation: Tensor) -> Tensor:
    """(4, 4) rigid motion of the world that turns the grid of `affine` as :func:`rotated_affine` says."""
    affine = affine.detach().cpu().double()
    q, centre = grid_rotation(affine), (torch.tensor(list(spatial_size), dtype=torch.float64) - 1) / 2
    centre_mm = affine[:3, :3] @ centre + affine[:3, 3]
    motion = torch.eye(4, dtype=torch.float64)
    motion[:3, :3] = q @ rotation @ q.T
    motion[:3, 3] = centre_mm - motion[:3, :3] @ centre_mm
    return motion


class RandRotateMMd(RandomizableTransform, MapTransform, InvertibleTransform, LazyTransform):
    """Rotate the grid about its centre, by a rotation uniform on SO(3) up to `max_degrees`, in millimetres.

    Correct on anisotropic and oblique grids, where a rotation of voxel indices would shear.  Size and spacing are
    kept and the affine follows, so that b-vectors and labels need nothing else.  All keys make the same motion in
    the world, about the centre of the first, so that grids with other axes, sizes or spacing stay in register.
    Lazy and invertible like MONAI's own transforms, on any device.
    mode, padding_mode: one for all keys or one per
    key, as in `monai.transforms.SpatialResample`; a lazy Compose ignores them and takes its `overrides`, as with all
    of MONAI's.  Raises TypeError for a plain tensor, which has no affine.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        prob: float = 0.1,
        max_degrees: float = 180.0,
        *,
        mode: str | Sequence[str] = "bilinear",
        padding_mode: str | Sequence[str] = "zeros",
        allow_missing_keys: bool = False,
        lazy: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        LazyTransform.__init__(self, lazy=lazy)
        if not 0 < max_degrees <= 180:
            raise ValueError(f"max_degrees must lie in (0, 180], got {max_degrees}")
        self.max_degrees = max_degrees
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.padding_mode = ensure_tuple_rep(padding_mode, len(self.keys))
        self.resampler = SpatialResample(align_corners=True, dtype=np.float32)
        self.rotation = torch.eye(3, dtype=torch.float64)

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        if self._do_transform:
            self.rotation = random_rotation(self.R, self.max_degrees)

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        lazy_ = self.lazy if lazy is None else lazy
        motion: Tensor | None = None
        for key, mode, padding_mode in self.key_iterator(item, self.mode, self.padding_mode):
            image = item[key]
            if not isinstance(image, MetaTensor):
                raise TypeError(f"RandRotateMMd: {key!r} is a {type(image).__name__}, expected a MetaTensor")
            if self._do_transform:
                size, affine = image.peek_pending_shape(), image.peek_pending_affine().cpu().double()
                motion = _motion(affine, size, self.rotation) if motion is None else motion
                target = motion @ affine
                image = self.resampler(image, target, size, mode, padding_mode, lazy=lazy_)
            self.push_transform(image, replace=True, lazy=lazy_)
            item[key] = image
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Turn back the images in `keys`; see MONAI's `InvertibleTransform`."""
        item = dict(data)
        for key in self.key_iterator(item):
            record = self.pop_transform(item[key])
            if record[TraceKeys.DO_TRANSFORM]:
                item[key].applied_operations.append(record[TraceKeys.EXTRA_INFO])
                item[key] = self.resampler.inverse(item[key])
        return item
