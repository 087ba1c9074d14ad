"""From the files of a gradient table to b-values and world vectors, by the convention that was declared or is certain.

| convention | file | vectors are along | sign of x |
|---|---|---|---|
| fsl, eddy | .bvec | image axes | mirrored where det(affine) > 0 |
| dipy | .bvec | image axes | as it stands |
| mrtrix | .b | scanner axes (RAS+) | as it stands |

A `.bvec` does not say which of the first two it follows.  Where a `.b` beside it disagrees with FSL's rule, neither is
taken in silence.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable, unit_vectors, world_from_fsl
from dmri_monai.io.dipy import world_from_dipy
from dmri_monai.io.fsl import read_bvals, read_bvecs
from dmri_monai.io.mrtrix import read_mrtrix
from dmri_monai.io.nifti import NiftiSource
from dmri_monai.io.qsiprep import is_from_qsiprep
from dmri_monai.io.sidecars import Sidecars

__all__ = ["FileTable", "read_file_table", "to_gradient_table"]

logger = logging.getLogger(__name__)

ROUNDING_DEGREES = 1.0  # a .bvec of two decimals is within 0.3
ROUNDING_BVAL = 0.05  # of the b-value: tools that scale b by the length of the vector change it by a little
NARROW_B0 = 15.0  # s/mm²: scanners' b0 differ by a few, IVIM series by more


@dataclass(frozen=True)
class FileTable:
    """A gradient table as its files hold it: b-values (M,) in s/mm², vectors (M, 3) of any length.

    convention: that of `vectors`.  bval_file, bvec_file: where they came from.
    """

    bvals: Tensor
    vectors: Tensor
    bval_file: Path
    bvec_file: Path
    convention: Literal["fsl", "dipy", "mrtrix"]

    def world_from_file(self, affine: Tensor) -> Tensor:
        """(3, 3) M with v_world = M v_file."""
        if self.convention == "mrtrix":
            return torch.eye(3, dtype=torch.float64)
        return world_from_dipy(affine) if self.convention == "dipy" else world_from_fsl(affine)

    def world_vectors(self, affine: Tensor) -> Tensor:
        """(M, 3) vectors in the world frame (RAS+), of the length they have in the file."""
        return self.vectors @ self.world_from_file(affine).T


def read_file_table(
    sidecars: Sidecars, source: NiftiSource, b0_threshold: float, *, any_count: bool = False
) -> FileTable:
    """The table of an image as its files hold it: vectors may be zero.

    any_count: whether the table may have more or fewer entries than the image has volumes.  ValueError otherwise, and
    where two tables disagree and nothing says which is right.
    """
    scanner = _scanner_table(sidecars, source)
    if scanner is not None and not any_count:
        _check_count(len(scanner.bvals), source, scanner.bval_file)
    if sidecars.bval is None or sidecars.bvec is None:
        assert scanner is not None, "find_sidecars raises otherwise"
        return scanner
    bvals = read_bvals(sidecars.bval)
    if not any_count:
        _check_count(len(bvals), source, sidecars.bval)
    vectors = read_bvecs(sidecars.bvec, bvals, b0_threshold)
    convention: Literal["fsl", "dipy"] = "dipy" if sidecars.choice == "dipy" else "fsl"
    along_image = FileTable(bvals, vectors, sidecars.bval, sidecars.bvec, convention)
    if sidecars.choice != "auto":
        return along_image
    if scanner is None:
        _refuse_unknown_sign(along_image, source)
        return along_image
    return _agreed(along_image, scanner, source, b0_threshold)


def _scanner_table(sidecars: Sidecars, source: NiftiSource) -> FileTable | None:
    if sidecars.mrtrix is None:
        return None
    if not source.has_orientation:
        if sidecars.bval and sidecars.bvec:
            logger.warning("%s is present and not used: no sform or qform places it", sidecars.mrtrix)
            return None
        raise ValueError(
            f"{sidecars.mrtrix} is in scanner axes, but no sform or qform places them: {source.path}"
        )
    return FileTable(*read_mrtrix(sidecars.mrtrix), sidecars.mrtrix, sidecars.mrtrix, "mrtrix")


def _refuse_unknown_sign(table: FileTable, source: NiftiSource) -> None:
    """QSIPrep's `.bvec` has no FSL sign; on a left-handed image that makes no difference."""
    if torch.linalg.det(source.affine[:3, :3]) > 0 and is_from_qsiprep(source.path):
        raise ValueError(
            f"QSIPrep made {source.path}: its .bvec usually follows DIPY's convention, not FSL's, and no .b is there "
            f"to tell. Give bvecs='dipy' or bvecs='fsl' for {table.bvec_file}"
        )


def _agreed(fsl: FileTable, scanner: FileTable, source: NiftiSource, b0_threshold: float) -> FileTable:
    """`fsl` where it says the same as `scanner`; QSIPrep's `scanner` where not; else ValueError naming both."""
    files = f"{fsl.bvec_file} and {scanner.bvec_file}"
    choices = "declare the right one with bvecs='fsl', 'dipy' or 'mrtrix'"
    if len(fsl.bvals) != len(scanner.bvals):
        raise ValueError(
            f"{len(fsl.bvals)} b-values in {fsl.bval_file}, {len(scanner.bvals)} in {scanner.bval_file}: {choices}"
        )
    apart = (fsl.bvals - scanner.bvals).abs()
    allowed = (ROUNDING_BVAL * fsl.bvals).clamp(min=b0_threshold)
    if bool((apart > allowed).any()):
        i = int((apart - allowed).argmax())
        raise ValueError(
            f"{fsl.bval_file} and {scanner.bval_file} disagree: b-value {i} is {fsl.bvals[i]:g} and "
            f"{scanner.bvals[i]:g}; {choices}"
        )
    angles = _angles(fsl, scanner, source.affine, b0_threshold)
    if not len(angles) or float(angles.max()) <= ROUNDING_DEGREES:
        return fsl
    said = f"{files} disagree under FSL's rule: mean angle {angles.mean():.1f} degrees, largest {angles.max():.1f}"
    if is_from_qsiprep(source.path):
        logger.warning("%s; QSIPrep's scanner-frame table is taken, %s", said, scanner.bvec_file)
        return scanner
    as_dipy = FileTable(fsl.bvals, fsl.vectors, fsl.bval_file, fsl.bvec_file, "dipy")
    other = _angles(as_dipy, scanner, source.affine, b0_threshold)
    hint = " (under DIPY's rule they agree)" if float(other.max()) <= ROUNDING_DEGREES else ""
    raise ValueError(f"{said}{hint}; {choices}")


def _angles(one: FileTable, other: FileTable, affine: Tensor, b0_threshold: float) -> Tensor:
    """Degrees between the axes of two tables, of the weighted volumes that both give a direction."""
    a, b = one.world_vectors(affine), other.world_vectors(affine)
    norms = a.norm(dim=1) * b.norm(dim=1)
    rows = (one.bvals > b0_threshold) & norms.isfinite() & (norms > 1e-6)
    cosines = ((a * b).sum(1)[rows] / norms[rows]).abs().clamp(max=1)
    return torch.rad2deg(cosines.acos())


def to_gradient_table(table: FileTable, source: NiftiSource, b0_threshold: float) -> GradientTable:
    """`table` with unit vectors in the world frame; ValueError where one with b > `b0_threshold` is none."""
    unit = unit_vectors(table.bvals, table.vectors, b0_threshold, source=str(table.bvec_file))
    _warn_of_b0(table.bvals, b0_threshold, table.bval_file)
    world = unit @ table.world_from_file(source.affine).T
    return GradientTable(table.bvals, world, b0_threshold)


def _check_count(n_bvals: int, source: NiftiSource, file: Path) -> None:
    n_volumes = source.shape[3]
    if n_bvals == n_volumes:
        return
    message = f"b-values: {n_bvals} entries in {file} for {n_volumes} volumes in {source.path}"
    if n_volumes == n_bvals + 1:
        message += (
            "; the volume without an entry is probably a trace or ADC map that the scanner appended: "
            "`dmri-monai fix` leaves it out"
        )
    if n_volumes == n_bvals - 1:
        message += (
            "; probably the converter left the scanner's trace or ADC volume out of the image but not of the table: "
            "convert again, or remove its entry from .bval and .bvec"
        )
    raise ValueError(message)


def _warn_of_b0(bvals: Tensor, b0_threshold: float, file: Path) -> None:
    """In ms/µm² a whole scan would pass for b0 volumes, and an IVIM series would be averaged into one."""
    b0 = bvals[bvals <= b0_threshold]
    if not len(b0):
        return
    low, high = float(b0.min()), float(b0.max())
    if len(b0) == len(bvals) and low < high:
        warnings.warn(
            f"all b-values are b0 (at most b0_threshold {b0_threshold:g}), from {low:g} to {high:g}: "
            f"expected s/mm² in {file}",
            stacklevel=5,
        )
    elif high - low > NARROW_B0:
        warnings.warn(
            f"{len(b0)} volumes from b = {low:g} to {high:g} count as b0 (b0_threshold {b0_threshold:g}) and are "
            f"averaged; give a lower b0_threshold to keep them apart: {file}",
            stacklevel=5,
        )
