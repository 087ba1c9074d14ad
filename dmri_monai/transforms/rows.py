"""What an item holds beside its image: gradient table and mask, read with their checks, and rows to select."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from dmri_monai.transforms.same_grid import check_same_grid

__all__ = ["item_mask", "item_table", "like", "plain", "select_rows", "with_meta"]

TABLE_KEYS = ("bvals", "bvecs", "bvecs_voxel", "weights", "valid")


def item_table(item: dict[Hashable, Any], key: Hashable, caller: str) -> tuple[Tensor, Tensor]:
    """b-values (N,) and world b-vectors (N, 3) of an item with N volumes in `item[key]`.

    Raises ValueError where they are missing or do not fit, or the image holds harmonics; TypeError for a plain tensor.
    """
    missing = [name for name in ("bvals", "bvecs") if name not in item]
    if missing:
        raise ValueError(f"{caller}: the item has no {' and no '.join(missing)}; load the scan with LoadDWId")
    bvals, bvecs, image = torch.as_tensor(item["bvals"]), torch.as_tensor(item["bvecs"]), item[key]
    if not isinstance(image, MetaTensor):
        raise TypeError(
            f"{caller}: {key!r} is a {type(image).__name__}, expected a MetaTensor, which carries an affine"
        )
    if "irreps" in image.meta:
        raise ValueError(
            f"{caller}: {key!r} holds harmonics ({image.meta['irreps']}), expected the measurements"
        )
    if image.ndim != 4 or len(bvals) != len(image) or bvecs.shape != (len(bvals), 3):
        raise ValueError(
            f"{caller}: {key!r} has shape {tuple(image.shape)} for {len(bvals)} b-values and b-vectors of "
            f"shape {tuple(bvecs.shape)}, expected (N, X, Y, Z), (N,) and (N, 3)"
        )
    return bvals, bvecs


def item_mask(item: dict[Hashable, Any], mask_key: str | None, key: Hashable, caller: str) -> Tensor | None:
    """(1, X, Y, Z) bool mask `item[mask_key]` on the grid of `item[key]`, its device; None without a key.

    Raises ValueError for a mask that is missing, has operations pending, or lies on another grid.
    """
    if mask_key is None:
        return None
    if mask_key not in item:
        raise ValueError(f"{caller}: the item has no mask {mask_key!r}")
    image, mask = item[key], torch.as_tensor(item[mask_key])
    if tuple(mask.shape) != (1, *image.shape[1:]):
        raise ValueError(
            f"{caller}: mask {mask_key!r} has shape {tuple(mask.shape)}, expected {(1, *image.shape[1:])}"
        )
    check_same_grid(image, mask, mask_key, caller)
    return (plain(mask) > 0).to(image.device)


def plain(value: Any) -> Tensor:
    """`value` as a tensor without meta data."""
    return torch.as_tensor(value).as_subclass(Tensor)


def with_meta(original: Any, data: Tensor) -> Tensor:
    """`data` with the meta data of `original` where it has any."""
    return like(original, data) if isinstance(original, MetaTensor) else data


def like(image: MetaTensor, data: Tensor) -> MetaTensor:
    """`data` with the affine, meta data and trace of `image`, pending lazy operations included."""
    plain = data.as_tensor() if isinstance(data, MetaTensor) else data
    result = MetaTensor(plain, meta=image.meta, applied_operations=image.applied_operations)
    for operation in image.pending_operations:
        result.push_pending_operation(operation)
    return result


def select_rows(item: dict[Hashable, Any], keys: Iterable[Hashable], index: Tensor) -> None:
    """Keep the measurements `index` (M,) of the images in `keys` and of every entry of the gradient table."""
    n = len(item["bvals"])
    for key in keys:
        item[key] = like(item[key], item[key].as_tensor().index_select(0, index.to(item[key].device)))
    for key in TABLE_KEYS:
        if key in item and len(item[key]) == n:
            values = torch.as_tensor(item[key])
            item[key] = values[index.to(values.device)]
