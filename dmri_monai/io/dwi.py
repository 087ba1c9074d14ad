"""Diffusion scans: an image, its gradient table in the world frame, and what the sidecar says about both."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD, GradientTable, unit_vectors
from dmri_monai.io.acquisition import acquisition_meta
from dmri_monai.io.nifti import NiftiSource, as_meta_tensor, nifti_stem, open_nifti, read_volumes
from dmri_monai.io.sidecars import BvecsChoice, Sidecars, find_sidecars
from dmri_monai.io.tables import format_bvals, format_bvecs, read_bvals, read_bvecs, read_mrtrix
from dmri_monai.io.writing import replacing, save_nifti

if TYPE_CHECKING:  # importing MONAI takes seconds, which a check of a scan does not need
    from monai.data.meta_tensor import MetaTensor

__all__ = ["read_dwi", "read_signal", "write_dwi"]


def read_dwi(
    path: str | Path, *, bvecs: BvecsChoice = "auto", b0_threshold: float = B0_THRESHOLD
) -> tuple[MetaTensor, GradientTable]:
    """Image (N, X, Y, Z) float32 with RAS+ affine, and its table of N volumes in the world frame.

    Sidecars: `<stem>.bval/.bvec` (FSL frame), BIDS inheritance, `bvals`/`bvecs` beside the image, or
    `<stem>.b` (MRtrix, scanner frame). bvecs="eddy" takes `<stem>.eddy_rotated_bvecs`. A JSON sidecar adds to
    `image.meta`: phase_encoding_world, slice_world, total_readout_time_s, slice_timing_s, multiband_factor,
    where known. Raises OSError or ValueError naming the file, the entry and both numbers.
    """
    signal, source, table, acquisition = read_signal(path, bvecs=bvecs, b0_threshold=b0_threshold)
    image = as_meta_tensor(signal, source)
    image.meta.update(acquisition)
    return image, table


def read_signal(
    path: str | Path, *, bvecs: BvecsChoice = "auto", b0_threshold: float = B0_THRESHOLD
) -> tuple[Tensor, NiftiSource, GradientTable, dict[str, Any]]:
    """What :func:`read_dwi` reads, its image a plain tensor: signal, header, table, entries of the JSON sidecar."""
    path = Path(path)
    source = open_nifti(path)
    if len(source.shape) != 4:
        raise ValueError(
            f"image has {len(source.shape)} axes {source.shape}, expected 4 (X, Y, Z, volumes): {path}"
        )
    sidecars = find_sidecars(path, bvecs)
    table = _read_table(sidecars, source, b0_threshold)
    acquisition = acquisition_meta(sidecars.json, source)
    signal = read_volumes(source)
    _check_finite(signal, source)
    return signal, source, table, acquisition


def _read_table(sidecars: Sidecars, source: NiftiSource, b0_threshold: float) -> GradientTable:
    n_volumes = source.shape[3]
    if sidecars.mrtrix:
        bvals, vectors = read_mrtrix(sidecars.mrtrix)
        _check_count(len(bvals), n_volumes, sidecars.mrtrix, source)
        if not source.has_orientation:
            raise ValueError(
                f"{sidecars.mrtrix} is in scanner axes, but no sform or qform places them: {source.path}"
            )
        unit = unit_vectors(bvals, vectors, b0_threshold, source=str(sidecars.mrtrix))
        _warn_of_other_units(bvals, b0_threshold, sidecars.mrtrix)
        return GradientTable(bvals, unit, b0_threshold)
    assert sidecars.bval is not None, "find_sidecars raises otherwise"
    assert sidecars.bvec is not None, "find_sidecars raises otherwise"
    bvals = read_bvals(sidecars.bval)
    _check_count(len(bvals), n_volumes, sidecars.bval, source)
    vectors = read_bvecs(sidecars.bvec, bvals, b0_threshold)
    unit = unit_vectors(bvals, vectors, b0_threshold, source=str(sidecars.bvec))
    _warn_of_other_units(bvals, b0_threshold, sidecars.bval)
    return GradientTable.from_fsl(bvals, unit, source.affine, b0_threshold)


def _warn_of_other_units(bvals: Tensor, b0_threshold: float, table: Path) -> None:
    """In ms/µm² a whole scan would pass for b0 volumes."""
    if bvals.min() < bvals.max() <= b0_threshold:
        warnings.warn(
            f"all b-values are b0 (at most {b0_threshold:g}), from {bvals.min():g} to {bvals.max():g}: "
            f"expected s/mm² in {table}",
            stacklevel=4,
        )


def _check_count(n_bvals: int, n_volumes: int, table: Path, source: NiftiSource) -> None:
    if n_bvals != n_volumes:
        raise ValueError(f"b-values: {n_bvals} entries in {table} for {n_volumes} volumes in {source.path}")


def _check_finite(signal: Tensor, source: NiftiSource) -> None:
    if source.dtype.kind != "f" and not source.is_scaled:
        return
    for i, volume in enumerate(signal):
        if not volume.sum().isfinite() and (bad := int((~volume.isfinite()).sum())):
            raise ValueError(
                f"volume {i} has {bad} voxels that are NaN or infinite, expected 0: {source.path}"
            )


def write_dwi(path: str | Path, image: MetaTensor, table: GradientTable) -> None:
    """Write `image` (N, X, Y, Z) as float32 NIfTI with `.bval` and `.bvec` (FSL frame) beside it, or none.

    The affine is the image's own; `table` is in the world frame.  Raises TypeError for an image without
    affine, ValueError when counts differ or a voxel is not finite.
    """
    from monai.data.meta_tensor import MetaTensor

    path = Path(path)
    stem = nifti_stem(path)
    if not isinstance(image, MetaTensor):
        raise TypeError(f"image is {type(image).__name__}, expected MetaTensor with an affine, for {path}")
    if image.ndim != 4 or len(image) != len(table):
        raise ValueError(
            f"image: shape {tuple(image.shape)} for {len(table)} gradients, expected (N, X, Y, Z): {path}"
        )
    values = image.detach().cpu().as_subclass(Tensor).float()
    if bad := int((~values.isfinite()).sum()):
        raise ValueError(f"image has {bad} voxels that are NaN or infinite, expected 0: {path}")
    targets = (path.with_name(f"{stem}.bval"), path.with_name(f"{stem}.bvec"), path)
    with replacing(*targets) as (bval, bvec, nifti):
        bval.write_text(format_bvals(table.bvals), encoding="ascii")
        bvec.write_text(format_bvecs(table.to_fsl(image.affine)), encoding="ascii")
        save_nifti(nifti, values, image.affine, name=path)
