"""Write files whole or not at all: temporary names in the target folder, renamed once all is written."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from nibabel.spatialimages import HeaderDataError
from torch import Tensor

from dmri_monai.gradients import grid_rotation
from dmri_monai.io.leftovers import remove, sweep, temporary_name
from dmri_monai.io.nifti import nifti_stem
from dmri_monai.io.renames import NOTE, carry_out, write_note

__all__ = ["full_disk_names", "replacing", "save_nifti", "write_nifti"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SCANNER = 1  # NIfTI code: scanner-based anatomical coordinates


@contextmanager
def replacing(*targets: Path, gone: Collection[Path] = ()) -> Iterator[tuple[Path, ...]]:
    """Temporary paths beside `targets` (files or folders): renamed onto them in order, or removed if the block fails.

    gone: files in the same folder that do not belong to the new ones and are removed.  Several `targets` lie in one
    folder and get their names together or not at all: what a kill or signal interrupts, the next write in the folder
    finishes.  OSError for a full disk names the last of `targets`, which the operating system does not.  What killed
    processes left in the folder goes.
    """
    folder = targets[0].parent
    assert {path.parent for path in (*targets, *gone)} == {folder}
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    temporary = tuple(target.with_name(temporary_name(target.name)) for target in targets)
    try:
        with full_disk_names(targets[-1]):
            yield temporary
            _rename(temporary, targets, gone)
    finally:
        for path in temporary:
            remove(path)


def _rename(temporary: Sequence[Path], targets: Sequence[Path], gone: Collection[Path]) -> None:
    if len(targets) == 1 and not gone:
        temporary[0].replace(targets[0])
        return
    for path in (*targets, *gone):
        if path.is_dir() and not path.is_symlink():
            raise IsADirectoryError(errno.EISDIR, "a folder is in the way", str(path))
    note, draft = (targets[0].with_name(temporary_name(end)) for end in (NOTE, NOTE + ".draft"))
    names = {source.name: target.name for source, target in zip(temporary, targets, strict=True)}
    try:
        write_note(note, draft, names, [path.name for path in gone])
        carry_out(note)
    except (KeyboardInterrupt, SystemExit):  # between two renames, perhaps
        if note.is_file():
            carry_out(note)
        raise
    finally:
        note.unlink(missing_ok=True)


@contextmanager
def full_disk_names(target: Path) -> Iterator[None]:
    """Around what writes `target`: let the error of a full disk name it, which the operating system does not."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise


def write_nifti(path: str | Path, array: Any, affine: Any, *, dtype: Any = None) -> None:
    """Write (X, Y, Z) or (C, X, Y, Z), the latter as a 4-D file with C last, with `affine` (4, 4) RAS+ mm.

    dtype: NumPy type to store; by default float32 for floating-point data, the integer type itself for
    integers (bool as uint8, 64 bits as int32, which other tools read). Raises ValueError when values do not
    fit it.
    """
    path = Path(path)
    nifti_stem(path)
    with replacing(path) as (temporary,):
        save_nifti(temporary, array, affine, dtype=dtype, name=path)


def save_nifti(temporary: Path, array: Any, affine: Any, *, name: Path, dtype: Any = None) -> None:
    """Write to `temporary`; `name` is the file errors speak of.  See :func:`write_nifti`."""
    values = _spatial_first(array, name)
    values = _cast(values, np.dtype(dtype) if dtype is not None else _default_dtype(values.dtype), name)
    matrix = torch.as_tensor(affine).detach().cpu().double()
    if matrix.shape != (4, 4):
        raise ValueError(f"affine: shape {tuple(matrix.shape)}, expected (4, 4) for {name}")
    try:
        grid_rotation(matrix)
        image = nibabel.Nifti1Image(values, matrix.numpy())
        _set_forms(image, matrix.numpy())
        image.to_filename(temporary)
    except (ValueError, HeaderDataError) as error:
        raise ValueError(f"cannot write image ({error}): {name}") from error


def _spatial_first(array: Any, name: Path) -> np.ndarray:
    if isinstance(array, Tensor):
        array = array.detach().cpu().as_subclass(Tensor)
        array = array.float() if array.dtype in (torch.bfloat16, torch.float16) else array
    values = np.asarray(array)
    if values.ndim not in (3, 4) or 0 in values.shape:
        raise ValueError(f"image: shape {values.shape}, expected (X, Y, Z) or (C, X, Y, Z) for {name}")
    return np.moveaxis(values, 0, -1) if values.ndim == 4 else values


def _default_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind == "f":
        return np.dtype(np.float32)
    return np.dtype(np.int32) if dtype.itemsize == 8 else dtype


def _cast(values: np.ndarray, dtype: np.dtype[Any], name: Path) -> np.ndarray:
    if values.dtype.kind not in "biuf" or dtype.kind not in "iuf":
        raise TypeError(f"cannot store {values.dtype} as {dtype}: {name}")
    if dtype.kind == "f" or values.dtype.kind == "b":
        return values.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    low, high = values.min(), values.max()
    if not (limits.min <= low and high <= limits.max):  # false for NaN as well
        raise ValueError(f"values from {low} to {high} do not fit {dtype}: {name}")
    if values.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        raise ValueError(f"values have fractions, which {dtype} cannot hold: {name}")
    return values.astype(dtype, copy=False)


def _set_forms(image: nibabel.Nifti1Image, affine: np.ndarray) -> None:
    """sform always; qform where a quaternion can hold the affine (it cannot hold shear)."""
    image.set_sform(affine, SCANNER)
    image.set_qform(affine, SCANNER)
    if np.abs(image.get_qform() - affine).max() > 1e-3:
        image.set_qform(None, 0)
    image.header.set_xyzt_units("mm", "sec")
