"""Batches of scans with different gradient tables."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import list_data_collate
from torch import Tensor
from torch.utils.data import default_collate

from dmri_monai.transforms.frames import check_voxel_frame
from dmri_monai.transforms.rows import like

__all__ = ["collate_dwi"]

TABLE_KEYS = ("bvals", "bvecs", "bvecs_voxel", "weights")


def collate_dwi(batch: Sequence[Any], image_keys: Sequence[str] = ("image",)) -> dict[Hashable, Any]:
    """Collate items (dictionaries, or lists of them) and pad their tables to the longest, N_max measurements.

    `bvals` (B, N_max), `bvecs` and `bvecs_voxel` (B, N_max, 3), images in `image_keys` (B, N_max, X, Y, Z)
    unless they hold harmonics; padding is 0, and `valid` (B, N_max) bool is False there, so that it never
    counts as b0.  Meta data survive; entries that cannot be stacked, or that only some scans have, become a list with
    an entry for each scan, None where it has none.  Items without b-values are collated as by MONAI.  Raises
    ValueError where something fixed to a voxel frame has been turned since (:func:`check_voxel_frame`), and for grids
    of different sizes.
    """
    items = [dict(i) for entry in batch for i in (entry if isinstance(entry, list) else [entry])]
    for item in items:
        for key, value in item.items():
            check_voxel_frame(value, str(key))
    without = [i for i, item in enumerate(items) if "bvals" not in item]
    if without and len(without) < len(items):
        raise ValueError(f"item {without[0]} of the batch has no bvals, others have")
    if items and not without:
        longest = max(len(item["bvals"]) for item in items)
        items = [_padded(item, longest, image_keys) for item in items]
    _check_grids(items, image_keys)
    apart = _split_meta(items)
    collated: dict[Hashable, Any] = list_data_collate(items)
    for key, entries in apart.items():
        collated[key].meta.update(entries)
    return collated


def _check_grids(items: Sequence[dict[Hashable, Any]], image_keys: Sequence[str]) -> None:
    """ValueError naming two scans of the batch whose grids are not of one size."""
    for key in image_keys:
        images = [item[key] for item in items if isinstance(item.get(key), Tensor)]
        for image in images:
            if image.shape[1:] != images[0].shape[1:]:
                sizes = ", ".join(
                    f"{tuple(one.shape[1:])} of {getattr(one, 'meta', {}).get('filename_or_obj', 'an array')}"
                    for one in (images[0], image)
                )
                raise ValueError(
                    f"grids of different sizes in one batch: {sizes}: crop or pad to one, or batch_size 1"
                )


class PerScan(list[Any]):
    """Values of a batch, one for each scan, that MONAI's `decollate_batch` hands out to the scans as they are.

    It would take a list of tensors for a list of batches; what says that it has no axes it asks for its `item()`.
    """

    ndim = 0

    def item(self) -> list[Any]:
        return list(self)


def _padded(item: dict[Hashable, Any], longest: int, image_keys: Sequence[str]) -> dict[Hashable, Any]:
    n = len(item["bvals"])
    valid = torch.as_tensor(item.get("valid", torch.ones(n, dtype=torch.bool)))
    item["valid"] = _pad_rows(valid, longest)
    for key in TABLE_KEYS:
        if key in item:
            item[key] = _pad_rows(torch.as_tensor(item[key]), longest)
    for key in image_keys:
        image = item.get(key)
        if isinstance(image, Tensor) and "irreps" not in getattr(image, "meta", {}):
            if len(image) != n:
                raise ValueError(f"{key!r} has {len(image)} volumes for {n} b-values")
            item[key] = _pad_rows(image, longest)
    return item


def _pad_rows(values: Tensor, longest: int) -> Tensor:
    if len(values) == longest:
        return values
    padding = values.new_zeros((longest - len(values), *values.shape[1:]))
    padded = torch.cat([values.as_subclass(Tensor), padding.as_subclass(Tensor)])
    return like(values, padded) if isinstance(values, MetaTensor) else padded


def _split_meta(items: list[dict[Hashable, Any]]) -> dict[Hashable, dict[str, PerScan]]:
    """Take out of the items' meta data what cannot be stacked; returned as image key -> entry -> value of each scan."""
    apart: dict[Hashable, dict[str, PerScan]] = {}
    for key in items[0] if items else ():
        metas = [item[key].meta for item in items if isinstance(item.get(key), MetaTensor)]
        if len(metas) < len(items):
            continue
        names = dict.fromkeys(name for meta in metas for name in meta)
        values = {name: [meta.get(name) for meta in metas] for name in names}
        apart[key] = {name: PerScan(v) for name, v in values.items() if not _can_collate(v)}
        for item in items if apart[key] else []:
            item[key] = like(item[key], item[key])
            for name in apart[key]:
                item[key].meta.pop(name, None)
    return apart


def _can_collate(values: list[Any]) -> bool:
    """Whether the values of all scans can be stacked; torch fails in its own ways, in a worker in others."""
    if any(value is None for value in values):
        return False
    try:
        default_collate(values)
    except (TypeError, RuntimeError, KeyError, AttributeError, ValueError):
        return False
    return True
