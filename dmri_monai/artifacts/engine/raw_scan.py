"""A scan as it is given, checked, and its valid volumes on the canonical grid and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmri_monai.artifacts.engine.canonical_grid import Reorientation
from dmri_monai.artifacts.engine.scan_context import SCAN_META, ScanContext, describe
from dmri_monai.artifacts.magnitudes import (
    HALF,
    as_stored,
    check_finite,
    check_magnitude,
    check_non_negative,
    check_shape,
)

__all__ = ["CanonicalScan", "RawScan", "known_acquisition", "to_canonical", "valid_rows", "zero_invalid"]


def zero_invalid(image: Tensor) -> tuple[Tensor, int]:
    """`image` with NaN, infinite and negative voxels set to 0, and how many there were."""
    bad = ~((image >= 0) & image.isfinite())
    count = int(bad.sum())
    return (image.masked_fill(bad, 0) if count else image), count


@dataclass(frozen=True)
class RawScan:
    """One scan as it is given; see `corrupt`."""

    image: Tensor
    bvals: Tensor
    bvecs_voxel: Tensor
    affine: Tensor
    rows: list[int] | None
    meta: Mapping[str, Any]
    field_hz: Tensor | None


@dataclass(frozen=True)
class CanonicalScan:
    """The valid volumes of one scan on the canonical grid."""

    image: Tensor
    scan: ScanContext
    turn: Reorientation
    rows: list[int] | None

    def restored(self, image: Tensor, corrupted: Tensor) -> Tensor:
        """`corrupted` in the array axes of `image`, among its untouched volumes; never the same memory."""
        back = self.turn.backward(as_stored(corrupted, image.dtype))
        if self.rows is None:
            return back.clone() if back.data_ptr() == image.data_ptr() else back
        whole = image.clone()
        whole[_selection(self.rows)] = back
        return whole


def to_canonical(given: RawScan) -> CanonicalScan:
    """The valid volumes of `given` on the canonical grid, half precision as float32; ValueError as `corrupt`."""
    chosen = _selection(given.rows)
    affine = torch.as_tensor(given.affine).detach().double().cpu()
    _check(given, chosen, affine)
    turn = Reorientation.to_canonical(affine)
    image = turn.forward(given.image[chosen])
    check_magnitude(image)
    if image.dtype in HALF:  # sums and intermediate steps need more digits, and more range
        image = image.float()
    table = (_array(given.bvals)[chosen], _array(given.bvecs_voxel)[chosen])
    field = None if given.field_hz is None else turn.forward(given.field_hz)
    scan = describe(image, table, affine.numpy(), turn, given.meta, field)
    return CanonicalScan(image, scan, turn, given.rows)


def _check(given: RawScan, chosen: slice | list[int], affine: Tensor) -> None:
    image = given.image
    if image.ndim != 4:
        raise ValueError(f"image: shape {tuple(image.shape)}, expected (N, X, Y, Z)")
    check_shape("bvals", given.bvals, (len(image),))
    check_shape("bvecs_voxel", given.bvecs_voxel, (len(image), 3))
    check_shape("affine", affine, (4, 4))
    if given.field_hz is not None:
        check_shape("field_hz", given.field_hz, tuple(image.shape[1:]))
        check_finite("field_hz", given.field_hz)
    check_non_negative("bvals", given.bvals[chosen])
    check_finite("bvecs_voxel", given.bvecs_voxel[chosen])


def valid_rows(valid: Tensor | None, image: Tensor) -> list[int] | None:
    """Indices of the `valid` (N,) volumes of `image`; None for all of them."""
    if valid is None:
        return None
    check_shape("valid", valid, (len(image),))
    rows = [int(i) for i in torch.nonzero(valid.detach().cpu()).flatten()]
    if not rows:
        raise ValueError(f"valid: none of {len(image)} volumes is")
    return None if len(rows) == len(image) else rows


def _selection(rows: list[int] | None) -> slice | list[int]:
    """Index of `rows`; a slice, which copies nothing, where they are the first ones: padding comes last."""
    if rows is None:
        return slice(None)
    return slice(len(rows)) if rows == list(range(len(rows))) else rows


def known_acquisition(meta: Any, item: int | None = None) -> dict[str, Any]:
    """What is known of one scan's acquisition, JSON-serialisable; of a batch's collated meta data, row
    `item`.
    """
    if meta is None:
        return {}
    if item is not None and not isinstance(meta, Mapping):
        meta, item = meta[item], None
    known = {key: meta[key] for key in SCAN_META if meta.get(key) is not None}
    return {key: _plain(value if item is None else value[item]) for key, value in known.items()}


def _plain(value: Any) -> Any:
    return torch.as_tensor(value).tolist()


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
