"""Diffusion scans: an image, its gradient table in the world frame, and what the sidecar says about both."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD, GradientTable
from dmri_monai.io.acquisition import acquisition_meta
from dmri_monai.io.fsl import format_bvals, format_bvecs
from dmri_monai.io.gradient_files import FileTable, read_file_table, to_gradient_table
from dmri_monai.io.leftovers import require_settled
from dmri_monai.io.nifti import NiftiSource, nifti_stem, open_nifti
from dmri_monai.io.nifti_volumes import as_meta_tensor, read_volumes
from dmri_monai.io.sidecars import BvecsChoice, find_sidecars
from dmri_monai.io.writing import replacing, save_nifti

if TYPE_CHECKING:  # importing MONAI takes seconds, which a check of a scan does not need
    from monai.data.meta_tensor import MetaTensor

__all__ = ["read_dwi", "read_parts", "read_signal", "write_dwi"]

logger = logging.getLogger(__name__)


def read_dwi(
    path: str | Path, *, bvecs: BvecsChoice = "auto", b0_threshold: float = B0_THRESHOLD
) -> tuple[MetaTensor, GradientTable]:
    """Image (N, X, Y, Z) float32 with RAS+ affine, and its table of N volumes in the world frame.

    Sidecars: `<stem>.bval/.bvec` (FSL frame), BIDS inheritance, `bvals`/`bvecs` beside the image, or `<stem>.b`
    (MRtrix, scanner frame).  bvecs: "fsl", "dipy" (along the image's axes, without FSL's sign of x), "mrtrix" (`.b`) or
    "eddy" (`<stem>.eddy_rotated_bvecs`) declare what to read; "auto" compares a `.b` with the `.bvec` beside it, and
    where they disagree takes QSIPrep's `.b` or refuses.  b0_threshold: volumes with b <= this (s/mm²) are b0.  A JSON
    sidecar adds to `image.meta`: phase_encoding_world, slice_world, total_readout_time_s, slice_timing_s,
    multiband_factor, where known. Raises OSError or ValueError naming the file, the entry and both numbers.
    """
    signal, source, table, acquisition = read_signal(path, bvecs=bvecs, b0_threshold=b0_threshold)
    image = as_meta_tensor(signal, source)
    image.meta.update(acquisition)
    if b0_threshold != B0_THRESHOLD:
        image.meta["b0_threshold"] = float(b0_threshold)
    return image, table


def read_signal(
    path: str | Path, *, bvecs: BvecsChoice = "auto", b0_threshold: float = B0_THRESHOLD
) -> tuple[Tensor, NiftiSource, GradientTable, dict[str, Any]]:
    """What :func:`read_dwi` reads, its image a plain tensor: signal, header, table, what the JSON sidecars say."""
    source = _open_series(Path(path))
    sidecars = find_sidecars(source.path, bvecs)
    table = to_gradient_table(read_file_table(sidecars, source, b0_threshold), source, b0_threshold)
    b0 = table.bvals[table.b0_mask]
    if len(b0):
        logger.debug("%d b0 volumes, b = %g to %g: %s", len(b0), b0.min(), b0.max(), source.path)
    signal = read_volumes(source)
    _check_finite(signal, source)
    return signal, source, table, acquisition_meta(sidecars.json, source)


def read_parts(path: str | Path, *, bvecs: BvecsChoice = "auto") -> tuple[MetaTensor, FileTable]:
    """Image (N, X, Y, Z) and its table as the files hold them, of M entries, for repairing what `read_dwi` refuses.

    Not checked: M may differ from N, vectors may be zero, a volume may be empty.  Raises as :func:`read_dwi` for files
    that cannot be read at all.
    """
    source = _open_series(Path(path))
    sidecars = find_sidecars(source.path, bvecs)
    table = read_file_table(sidecars, source, B0_THRESHOLD, any_count=True)
    image = as_meta_tensor(read_volumes(source), source)
    image.meta.update(acquisition_meta(sidecars.json, source))
    return image, table


def _open_series(path: Path) -> NiftiSource:
    require_settled(path)
    source = open_nifti(path)
    if len(source.shape) != 4:
        raise ValueError(
            f"image has {len(source.shape)} axes {source.shape}, expected 4 (X, Y, Z, volumes): {path}"
        )
    single = [axis for axis, n in zip("ijk", source.shape, strict=False) if n == 1]
    if single:
        warnings.warn(
            f"a single slice along {', '.join(single)} {source.shape[:3]}: networks need neighbours on both sides, "
            f"do not trust their tissue: {path}",
            stacklevel=3,
        )
    return source


def _check_finite(signal: Tensor, source: NiftiSource) -> None:
    if source.dtype.kind != "f" and not source.is_scaled:
        return
    if all(bool(volume.sum().isfinite() or volume.isfinite().all()) for volume in signal):
        return
    # volumes that are all 0 say nothing of a mask, and `fix` leaves them out
    outside = torch.stack([~volume.isfinite() for volume in signal if bool(volume.any())]).all(dim=0)
    count = int(outside.sum())
    if count == outside.numel():
        raise ValueError(f"no voxel of a volume with signal is finite: {source.path}")
    for i, volume in enumerate(signal):
        if bad := int((~volume.isfinite() & ~outside).sum()):
            others = f", besides {count} that are so in every volume" if count else ""
            raise ValueError(
                f"volume {i} has {bad} voxels that are NaN or infinite{others}, expected 0: {source.path}"
            )
    raise ValueError(
        f"{count} of {outside.numel()} voxels are NaN or infinite in every volume, as outside of a mask, "
        f"expected 0 there (`dmri-monai fix` writes it): {source.path}"
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
