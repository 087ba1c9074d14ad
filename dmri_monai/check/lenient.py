"""A scan as its files hold it, for mending what the strict reader refuses: stored numbers, table of any length."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD, GradientTable
from dmri_monai.io.acquisition import acquisition_meta
from dmri_monai.io.gradient_files import FileTable, read_file_table
from dmri_monai.io.leftovers import require_settled
from dmri_monai.io.nifti import open_nifti
from dmri_monai.io.nifti_volumes import read_volumes
from dmri_monai.io.sidecars import BvecsChoice, find_sidecars

__all__ = ["FileScan", "read_files"]


@dataclass(frozen=True, eq=False)
class FileScan:
    """signal (N, X, Y, Z) float32, scaled; entries: the table of M entries, unchecked: M may differ from N.

    missing: (N, X, Y, Z) bool, where the file holds NaN or infinity, as some tools write the outside of a mask; 0 in
    `signal`.  json: the sidecars that were read, general to specific.
    """

    path: Path
    signal: Tensor
    missing: Tensor
    affine: Tensor
    slice_world: Tensor | None
    entries: FileTable
    b0_threshold: float
    json: tuple[Path, ...]

    @property
    def bvals(self) -> Tensor:
        """(M,) s/mm²."""
        return self.entries.bvals

    @property
    def pointless(self) -> list[int]:
        """Entries of the table that claim a weighting without a direction."""
        short = self.entries.vectors.nan_to_num(0.0).norm(dim=1) == 0
        return torch.nonzero(short & (self.bvals > self.b0_threshold)).flatten().tolist()

    def table(self, rows: list[int]) -> GradientTable:
        """The entries `rows`, checked, in the world frame."""
        vectors = self.entries.world_vectors(self.affine)
        return GradientTable(self.bvals[rows], vectors[rows], self.b0_threshold)

    def stored(self, rows: list[int]) -> nibabel.Nifti1Image:
        """Volumes `rows` as they lie in the file: type, scaling, header and numbers kept, 0 where one is missing."""
        image: Any = nibabel.load(self.path)
        raw = np.asarray(image.dataobj.get_unscaled())[..., rows]
        missing = self.missing[rows].movedim(0, -1).numpy()
        if missing.any():
            raw[missing] = -image.dataobj.inter / image.dataobj.slope  # is read as 0
        header = image.header.copy()
        header.set_data_shape(raw.shape)
        kept: nibabel.Nifti1Image = type(image)(raw, None, header)
        kept.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)  # making an image forgets them
        return kept


def read_files(
    path: str | os.PathLike[str], *, bvecs: BvecsChoice = "auto", b0_threshold: float = B0_THRESHOLD
) -> FileScan:
    """The DWI file at `path` with its sidecars; OSError or ValueError for files that cannot be read at all."""
    require_settled(Path(path))
    source = open_nifti(Path(path))
    if len(source.shape) != 4:
        raise ValueError(f"image has {len(source.shape)} axes {source.shape}, expected 4: {source.path}")
    sidecars = find_sidecars(source.path, bvecs)
    signal = read_volumes(source)
    missing = torch.stack([~volume.isfinite() for volume in signal])
    signal.masked_fill_(missing, 0)
    return FileScan(
        path=source.path,
        signal=signal,
        missing=missing,
        affine=source.affine,
        slice_world=acquisition_meta(sidecars.json, source).get("slice_world"),
        entries=read_file_table(sidecars, source, b0_threshold, any_count=True),
        b0_threshold=b0_threshold,
        json=sidecars.json,
    )
