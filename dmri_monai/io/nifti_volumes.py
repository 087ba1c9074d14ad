"""Read NIfTI-1 and NIfTI-2 images volume by volume into contiguous channel-first tensors.

The array is never held twice: each volume is read, scaled and transposed into its place, so peak memory is
the result plus one volume, and a file is read to its end, so a truncated or corrupt gzip stream is always
noticed.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch

from dmri_monai.io.nifti import NiftiSource, open_nifti, open_stream

if TYPE_CHECKING:  # importing MONAI takes seconds, which a check of a scan does not need
    from monai.data.meta_tensor import MetaTensor

__all__ = ["as_meta_tensor", "read_nifti", "read_volumes"]


def read_volumes(source: NiftiSource, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(C, X, Y, Z) contiguous tensor of a 3-D (C = 1) or 4-D image, intensities scaled as the header says."""
    if len(source.shape) > 4:
        raise ValueError(f"image has {len(source.shape)} axes {source.shape}, expected 3 or 4: {source.path}")
    x, y, z, n = (*source.shape, 1)[:4]
    out = _allocate((n, x, y, z), dtype, source.path)
    target = out.numpy()
    raw = np.empty((z, y, x), dtype=source.dtype)  # NIfTI stores x fastest
    with open_stream(source.path) as stream:
        _skip(stream, source.offset)
        for i in range(n):
            _fill(stream, raw, i, n)
            np.copyto(target[i], _scaled(raw, source).T, casting="unsafe")
        while stream.read(1 << 20):  # to the end: gzip checks its sum there
            pass
    return out


def _allocate(shape: tuple[int, ...], dtype: torch.dtype, path: Path) -> torch.Tensor:
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as error:  # what torch raises when the memory is not there
        raise OSError(f"no memory for {math.prod(shape)} voxels of shape {shape}: {path}") from error


def _scaled(raw: np.ndarray, source: NiftiSource) -> np.ndarray:
    if not source.is_scaled:
        return raw
    exact_in_single = raw.dtype.itemsize <= 2 or raw.dtype == np.float32
    values: np.ndarray[Any, Any] = raw.astype(np.float32 if exact_in_single else np.float64)
    values *= source.slope
    values += source.intercept
    return values


def _skip(stream: BinaryIO, n_bytes: int) -> None:
    if len(stream.read(n_bytes)) != n_bytes:
        raise EOFError("the file ends inside the header")


def _fill(stream: BinaryIO, raw: np.ndarray, index: int, count: int) -> None:
    view = raw.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        n = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not n:
            raise EOFError(f"the file ends inside volume {index} of {count}")
        done += n


def as_meta_tensor(data: torch.Tensor, source: NiftiSource) -> MetaTensor:
    """`data` (C, X, Y, Z) with the file's affine and the meta entries MONAI's own loader sets."""
    from monai.data.meta_tensor import MetaTensor

    meta = {
        "filename_or_obj": str(source.path),
        "original_affine": source.affine.clone(),
        "spatial_shape": np.asarray(source.shape[:3]),
        "original_channel_dim": 3 if len(source.shape) > 3 else "no_channel",
        "space": "RAS",
    }
    return MetaTensor(data, affine=source.affine.clone(), meta=meta)


def read_nifti(path: str | Path, *, dtype: torch.dtype = torch.float32) -> MetaTensor:
    """(C, X, Y, Z) image of a 3-D (C = 1) or 4-D file, with its RAS+ affine; NaN is kept.

    Raises ValueError or OSError naming the file: unreadable, truncated, singular affine, more than four axes.
    """
    source = open_nifti(path)
    return as_meta_tensor(read_volumes(source, dtype), source)
