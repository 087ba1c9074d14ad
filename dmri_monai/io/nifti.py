"""Read NIfTI-1 and NIfTI-2 images volume by volume into contiguous channel-first tensors.

The array is never held twice: each volume is read, scaled and transposed into its place, so peak memory is
the result plus one volume, and a file is read to its end, so a truncated or corrupt gzip stream is always
noticed.
"""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import nibabel
import numpy as np
import torch

from dmri_monai.gradients import grid_rotation

if TYPE_CHECKING:  # importing MONAI takes seconds, which a check of a scan does not need
    from monai.data.meta_tensor import MetaTensor

__all__ = ["NiftiSource", "as_meta_tensor", "open_nifti", "read_nifti", "read_volumes"]

SUFFIXES = (".nii.gz", ".nii")
DEFLATE_LIMIT = 1040  # deflate cannot expand by more than about 1032
KINDS = "iufb"  # integer, unsigned, float, bool: what a scan can hold


@dataclass(frozen=True)
class NiftiSource:
    """Where the voxels of a file lie and what they mean; `affine` (4, 4) float64, voxel index to RAS+ mm."""

    path: Path
    shape: tuple[int, ...]
    affine: torch.Tensor
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    slice_axis: int | None
    has_orientation: bool

    @property
    def is_scaled(self) -> bool:
        return (self.slope, self.intercept) != (1.0, 0.0)


def nifti_stem(path: Path) -> str:
    """File name without .nii or .nii.gz; ValueError for any other ending."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix) and path.name != suffix:
            return path.name.removesuffix(suffix)
    raise ValueError(f"file name ends in neither .nii nor .nii.gz: {path}")


def open_nifti(path: str | Path) -> NiftiSource:
    """Header of a .nii or .nii.gz file, checked; raises OSError or ValueError naming the file."""
    path = Path(path)
    nifti_stem(path)
    if path.stat().st_size == 0:
        raise ValueError(f"image is empty (0 bytes): {path}")
    header, proxy, affine = _load_header(path)
    affine = torch.as_tensor(np.asarray(affine, dtype=np.float64))
    if not affine.isfinite().all():
        raise ValueError(f"affine is not finite: {affine.tolist()} in {path}")
    try:
        grid_rotation(affine)
    except ValueError as error:
        raise ValueError(f"{error} in {path}") from error
    source = NiftiSource(
        path=path,
        shape=tuple(int(n) for n in proxy.shape),
        affine=affine,
        dtype=np.dtype(proxy.dtype),
        offset=int(proxy.offset),
        slope=float(proxy.slope),
        intercept=float(proxy.inter),
        slice_axis=header.get_dim_info()[2],
        has_orientation=bool(header["sform_code"] > 0 or header["qform_code"] > 0),
    )
    _check_source(source)
    return source


def _load_header(path: Path) -> tuple[Any, Any, Any]:
    try:
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 derives from it
            raise ValueError(f"not a NIfTI image but {type(image).__name__}: {path}")
        return image.header, image.dataobj, image.affine
    except OSError as error:
        raise OSError(f"cannot read image ({error}): {path}") from error
    except (
        Exception
    ) as error:  # nibabel has no common base class, and damaged headers reach numpy and zlib too
        raise ValueError(f"cannot read NIfTI header ({type(error).__name__}: {error}): {path}") from error


def _check_source(source: NiftiSource) -> None:
    path = source.path
    if len(source.shape) < 3 or min(source.shape) < 1:
        raise ValueError(
            f"image has shape {source.shape}, expected at least three axes of 1 or more voxels: {path}"
        )
    if source.dtype.kind not in KINDS or source.dtype.names:
        raise ValueError(f"image holds {source.dtype}, expected real numbers: {path}")
    if not (math.isfinite(source.slope) and math.isfinite(source.intercept)):
        raise ValueError(
            f"image scaling is {source.slope} x + {source.intercept}, expected finite numbers: {path}"
        )
    needed = source.offset + math.prod(source.shape) * source.dtype.itemsize
    size = path.stat().st_size
    most = size * DEFLATE_LIMIT if path.name.endswith(".gz") else size
    if needed > most:  # checked before memory is asked for: a damaged header can claim terabytes
        raise ValueError(
            f"image is truncated: shape {source.shape} needs {needed} bytes, file has {size}: {path}"
        )
    if not source.has_orientation:
        warnings.warn(
            f"no sform and no qform: orientation unknown, taken as LAS along the array axes: {path}",
            stacklevel=4,
        )


def read_volumes(source: NiftiSource, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(C, X, Y, Z) contiguous tensor of a 3-D (C = 1) or 4-D image, intensities scaled as the header says."""
    if len(source.shape) > 4:
        raise ValueError(f"image has {len(source.shape)} axes {source.shape}, expected 3 or 4: {source.path}")
    x, y, z, n = (*source.shape, 1)[:4]
    out = _allocate((n, x, y, z), dtype, source.path)
    target = out.numpy()
    raw = np.empty((z, y, x), dtype=source.dtype)  # NIfTI stores x fastest
    with _stream(source.path) as stream:
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


@contextmanager
def _stream(path: Path) -> Iterator[BinaryIO]:
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            yield stream  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"image is truncated or damaged ({error}): {path}") from error


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
