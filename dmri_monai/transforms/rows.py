"""The gradient table of an item: read it, and select its measurements everywhere at once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

__all__ = ["item_table", "like", "select_rows"]

TABLE_KEYS = ("bvals", "bvecs", "bvecs_voxel", "weights", "valid")


def item_table(item: dict[Hashable, Any], key: Hashable, caller: str) -> tuple[Tensor, Tensor]:
    """b-values (N,) and world b-vectors (N, 3) of an item with N volumes in `item[key]`, or ValueError."""
    missing = [name for name in ("bvals", "bvecs") if name not in item]
    if missing:
        raise ValueError(f"{caller}: the item has no {' and no '.join(missing)}; load the scan with LoadDWId")
    bvals, bvecs, image = torch.as_tensor(item["bvals"]), torch.as_tensor(item["bvecs"]), item[key]
    if isinstance(image, MetaTensor) and "irreps" in image.meta:
        raise ValueError(
            f"{caller}: {key!r} holds harmonics ({image.meta['irreps']}), expected the measurements"
        )
    if image.ndim != 4 or len(bvals) != len(image) or bvecs.shape != (len(bvals), 3):
        raise ValueError(
            f"{caller}: {key!r} has shape {tuple(image.shape)} for {len(bvals)} b-values and b-vectors of "
            f"shape {tuple(bvecs.shape)}, expected (N, X, Y, Z), (N,) and (N, 3)"
        )
    return bvals, bvecs


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
