"""Load a diffusion scan with its gradient table, a map on its grid, or an image of harmonic coefficients."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from dmri_monai.gradients import B0_THRESHOLD, GradientTable
from dmri_monai.io import read_dwi, read_harmonics, read_nifti
from dmri_monai.io.no_signal import require_signal
from dmri_monai.io.sidecars import BvecsChoice, find_sidecars
from dmri_monai.qspace.conventions import Basis

__all__ = ["LoadDWId", "LoadHarmonicsd", "LoadNiftid"]


class LoadDWId(MapTransform):
    """Replace the path in `keys` by the scan: MetaTensor (N, X, Y, Z) float32 with its RAS+ affine.

    Adds `bvals` (N,) in s/mm² and `bvecs` (N, 3), unit world vectors, zero for b0, both float32.  Where the
    scan's sidecar says so, the meta data hold `phase_encoding_world` and `slice_world` (3,).  Masks and labels are
    loaded with :class:`LoadNiftid`.  Several keys share one table.  bvecs, b0_threshold: as of
    :func:`dmri_monai.io.read_dwi`; a threshold other than the default stands in the meta data as `b0_threshold`, where
    other transforms find it.  Raises ValueError, TypeError or OSError naming the file, as `read_dwi`, where the tables
    of the keys differ, and for a scan without signal (all 0, constant, negated), which no network may see.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        bvecs: BvecsChoice = "auto",
        b0_threshold: float = B0_THRESHOLD,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.bvecs: BvecsChoice = bvecs
        self.b0_threshold = b0_threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item, first = dict(data), None
        for key in self.key_iterator(item):
            path = item[key]
            item[key], table = read_dwi(path, bvecs=self.bvecs, b0_threshold=self.b0_threshold)
            require_signal(item[key], table.bvals, path)
            first = first or (path, table)
            if not _same_table(first[1], table):
                raise ValueError(f"LoadDWId: the gradient table of {path} differs from that of {first[0]}")
            item["bvals"] = table.bvals.float()
            item["bvecs"] = table.bvecs.float()
        return item

    def files(self, data: Mapping[Hashable, Any]) -> list[Path]:
        """The files `data` is read from: scans, gradient tables, JSON sidecars.  Raises as `find_sidecars`."""
        found: list[Path] = []
        for key in self.key_iterator(dict(data)):
            path = Path(data[key])
            sidecars = find_sidecars(path, self.bvecs)
            found += [path, *sidecars.tables, *sidecars.json]
        return found


def _same_table(a: GradientTable, b: GradientTable) -> bool:
    """Whether two tables agree to the rounding of text files."""
    if len(a) != len(b):
        return False
    return bool(((a.bvals - b.bvals).abs() <= 1).all() and ((a.bvecs - b.bvecs).abs() <= 1e-3).all())


class LoadNiftid(MapTransform):
    """Replace the paths in `keys` by masks, labels, maps: MetaTensor (C, X, Y, Z) float32 with its RAS+ affine in mm.

    As MONAI's `LoadImaged` with `ensure_channel_first=True`, but the header is read as a scan's is: voxel sizes in
    micron or metre are converted, contradictions refused.  Raises as :func:`dmri_monai.io.read_nifti`.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = read_nifti(item[key])
        return item


class LoadHarmonicsd(MapTransform):
    """Replace the path in `keys` by its harmonic coefficients: MetaTensor (C, X, Y, Z) in e3nn's convention.

    They are in the world frame, where spatial transforms leave them right; turn them into the voxel frame last,
    beside the image: `DirectionsToVoxelFramed(keys, kind="1x0e+1x2e+1x4e")`.  basis, legacy: of the file, by
    default those of MRtrix3.  Raises as :func:`dmri_monai.io.read_harmonics`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        basis: Basis = "tournier07",
        legacy: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.basis: Basis = basis
        self.legacy = legacy

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = read_harmonics(item[key], basis=self.basis, legacy=self.legacy)
        return item
