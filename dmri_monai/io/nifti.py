"""NIfTI headers, read and checked: where the voxels are in the file, and where they lie in millimetres.

A header that contradicts itself is refused; one that can be read in two ways is read in the standard's, with a warning.
Reference: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import gzip
import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
import torch

from dmri_monai.gradients import grid_rotation
from dmri_monai.io.present import required

__all__ = ["SUFFIXES", "NiftiSource", "is_nifti", "nifti_stem", "open_nifti", "open_stream"]

SUFFIXES = (".nii.gz", ".nii")
DEFLATE_LIMIT = 1040  # deflate cannot expand by more than about 1032
KINDS = "iufb"  # integer, unsigned, float, bool: what a scan can hold
UNITS_MM = {1: ("metre", 1000.0), 3: ("micron", 0.001)}  # xyzt_units: what is not in millimetres
VOXEL_MM = (0.001, 100.0)  # no scanner's voxel lies outside
SIZE_TOLERANCE = 0.02  # of the voxel size
FORMS_VOXELS, FORMS_DEGREES = 0.5, 0.5  # beyond these sform and qform disagree


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
    """File name without .nii or .nii.gz, in any case; ValueError for any other ending."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)]
    raise ValueError(f"file name ends in neither .nii nor .nii.gz: {path}")


def is_nifti(path: Path) -> bool:
    """Whether the name of `path` is that of a NIfTI image."""
    return path.name.lower().endswith(SUFFIXES) and path.name.lower() not in SUFFIXES


def open_nifti(path: str | Path) -> NiftiSource:
    """Header of a .nii or .nii.gz file, checked; raises OSError or ValueError naming the file."""
    path = Path(path)
    nifti_stem(path)
    if required(path).stat().st_size == 0:
        raise ValueError(f"image is empty (0 bytes): {path}")
    header, proxy, affine = _load_header(path)
    _check_raw_header(path, type(header))
    source = NiftiSource(
        path=path,
        shape=tuple(int(n) for n in proxy.shape),
        affine=_in_mm(_checked_affine(affine, path), header, path),
        dtype=np.dtype(proxy.dtype),
        offset=int(proxy.offset),
        slope=float(proxy.slope),
        intercept=float(proxy.inter),
        slice_axis=header.get_dim_info()[2],
        has_orientation=bool(header["sform_code"] > 0 or header["qform_code"] > 0),
    )
    _check_source(source)
    _warn_of_two_forms(header, source)
    return source


@contextmanager
def open_stream(path: Path) -> Iterator[BinaryIO]:
    """The uncompressed bytes of a NIfTI file; ValueError naming it where they are damaged."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            yield stream  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"image is truncated or damaged ({error}): {path}") from error


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


def _check_raw_header(path: Path, kind: Any) -> None:
    """What nibabel mends in silence: a scaling that is no number, and a voxel size that is not the type's."""
    with open_stream(path) as stream:
        raw = kind(stream.read(kind.template_dtype.itemsize), check=False)
    slope, intercept = float(raw["scl_slope"]), float(raw["scl_inter"])
    if not (math.isfinite(slope) and (slope == 0 or math.isfinite(intercept))):
        raise ValueError(f"image scaling is {slope} x + {intercept}, expected finite numbers: {path}")
    bits, dtype = int(raw["bitpix"]), raw.get_data_dtype()
    if bits != 8 * dtype.itemsize:
        raise ValueError(f"header contradicts itself: datatype {dtype}, but {bits} bits per voxel: {path}")


def _checked_affine(matrix: Any, path: Path) -> torch.Tensor:
    affine = torch.as_tensor(np.asarray(matrix, dtype=np.float64))
    if not affine.isfinite().all():
        raise ValueError(f"affine is not finite: {affine.tolist()} in {path}")
    try:
        grid_rotation(affine)
    except ValueError as error:
        raise ValueError(f"{error} in {path}") from error
    return affine


def _in_mm(affine: torch.Tensor, header: Any, path: Path) -> torch.Tensor:
    unit, factor = UNITS_MM.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))
    if factor == 1.0:
        return affine
    stored = affine[:3, :3].norm(dim=0)
    sizes, said = _sizes(stored * factor), f"the header gives voxels of {_sizes(stored)} {unit}"
    if not bool(((stored * factor >= VOXEL_MM[0]) & (stored * factor <= VOXEL_MM[1])).all()):
        raise ValueError(f"{said}, that is {sizes} mm: no scan has them, the unit seems wrong: {path}")
    warnings.warn(f"{said}: read as {sizes} mm: {path}", stacklevel=3)
    scaled = affine.clone()
    scaled[:3] *= factor
    return scaled


def _sizes(spacing: torch.Tensor) -> str:
    return " x ".join(f"{v:.4g}" for v in spacing.tolist())


def _check_source(source: NiftiSource) -> None:
    path = source.path
    if len(source.shape) < 3 or min(source.shape) < 1:
        raise ValueError(
            f"image has shape {source.shape}, expected at least three axes of 1 or more voxels: {path}"
        )
    if source.dtype.kind not in KINDS or source.dtype.names:
        raise ValueError(f"image holds {source.dtype}, expected real numbers: {path}")
    needed = source.offset + math.prod(source.shape) * source.dtype.itemsize
    size = path.stat().st_size
    most = size * DEFLATE_LIMIT if path.name.lower().endswith(".gz") else size
    if needed > most:  # checked before memory is asked for: a damaged header can claim terabytes
        raise ValueError(
            f"image is truncated: shape {source.shape} needs {needed} bytes, file has {size}: {path}"
        )
    if not source.has_orientation:
        warnings.warn(
            f"no sform and no qform: orientation unknown, taken as LAS along the array axes: {path}",
            stacklevel=4,
        )


def _warn_of_two_forms(header: Any, source: NiftiSource) -> None:
    """The sform is used, as by nibabel and FSL; where the qform puts the image elsewhere, the user must know."""
    if header["sform_code"] > 0 and not header["qform_code"] > 0:
        _warn_of_two_sizes(header, source)
    if not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return
    try:
        sform, qform = header.get_sform(), header.get_qform()
        turn = grid_rotation(torch.from_numpy(sform)).T @ grid_rotation(torch.from_numpy(qform))
    except ValueError as error:  # a quaternion longer than 1, or a voxel size of 0
        warnings.warn(f"the qform cannot be read ({error}), the sform is used: {source.path}", stacklevel=3)
        return
    corners = np.array([[*c, 1.0] for c in product(*((0, n - 1) for n in source.shape[:3]))])
    apart = float(np.linalg.norm(corners @ (sform - qform).T, axis=1).max())
    mirrored = float(torch.linalg.det(turn)) < 0
    angle = math.degrees(math.acos(min(1.0, max(-1.0, (float(turn.trace()) - 1) / 2))))
    smallest = float(np.linalg.norm(sform[:3, :3], axis=0).min())
    if not (mirrored or apart > FORMS_VOXELS * smallest or angle > FORMS_DEGREES):
        return
    how = "one mirrors the other" if mirrored else f"{angle:.1f} degrees"
    warnings.warn(
        f"sform and qform disagree by up to {apart:.4g} mm, {how}: the sform {_matrix(sform)} is used, "
        f"not the qform {_matrix(qform)}: {source.path}",
        stacklevel=3,
    )


def _warn_of_two_sizes(header: Any, source: NiftiSource) -> None:
    """Without a qform, pixdim is a second statement of the voxel size, which some programs read."""
    sform = torch.from_numpy(header.get_sform())[:3, :3].norm(dim=0)
    stated = torch.tensor([abs(float(v)) for v in header["pixdim"][1:4]], dtype=torch.float64)
    if bool(((stated - sform).abs() > SIZE_TOLERANCE * sform).any()):
        warnings.warn(
            f"the header gives voxels of {_sizes(sform)} in its sform, which is used, and {_sizes(stated)} in pixdim: "
            f"{source.path}",
            stacklevel=4,
        )


def _matrix(affine: np.ndarray) -> str:
    return "[" + "; ".join(" ".join(f"{v:.4g}" for v in row) for row in affine[:3]) + "]"
