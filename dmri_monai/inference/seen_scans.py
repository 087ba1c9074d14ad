"""The range of scans that a training saw, from their headers and gradient tables; no voxel is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dmri_monai.gradients import B0_THRESHOLD, cluster_shells
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.training_range import TrainingRange
from dmri_monai.io.nifti import open_nifti
from dmri_monai.io.sidecars import BvecsChoice, find_sidecars
from dmri_monai.qspace.shell_fit import ALWAYS_NEAR

__all__ = ["Acquired", "ScanHeader", "is_near", "range_seen", "used_shells"]

Shells = Sequence[tuple[float, int]]


class Acquired(Protocol):
    """What counts of a scan: b-value (s/mm²) and number of directions of each shell, voxel size, SNR where known."""

    @property
    def shells(self) -> tuple[tuple[float, int], ...]: ...

    @property
    def spacing_mm(self) -> tuple[float, ...]: ...

    @property
    def snr(self) -> float | None: ...


@dataclass(frozen=True)
class ScanHeader:
    """A scan (:class:`Acquired`) of which header and b-values were read, so that its SNR is not known."""

    shells: tuple[tuple[float, int], ...]
    spacing_mm: tuple[float, ...]
    snr: float | None = None

    @classmethod
    def read(
        cls, image: str | Path, bvecs: BvecsChoice = "auto", b0_threshold: float = B0_THRESHOLD
    ) -> ScanHeader:
        """Options and errors as :func:`dmri_monai.io.read_dwi`, but nothing is compared with the voxels."""
        source = open_nifti(image)
        bvals = find_sidecars(source.path, bvecs).read_bvals()
        shells = tuple((s.bval, len(s.indices)) for s in cluster_shells(bvals, b0_threshold))
        return cls(shells, tuple(round(v, 4) for v in source.affine[:3, :3].norm(dim=0).tolist()))


def range_seen(scans: Iterable[Acquired], spec: ModelSpec, drops_shells: bool = False) -> TrainingRange:
    """Lowest and highest number of directions, voxel size, SNR, and for models of any shells b-value, of the scans.

    A model trained with thinned tables (`subsample_directions`) has also seen the fewest directions of every shell, and
    one whose training drops shells at random, the smallest shell alone.
    """
    scans = list(scans)
    used = [shells for scan in scans if (shells := used_shells(scan.shells, spec))]
    values: dict[str, list[float]] = {
        "directions": [float(n) for shells in used for n in _directions(shells, spec, drops_shells)],
        "bval": [b for shells in used for b, _ in shells] if spec.takes == "shell-set" else [],
        "voxel_mm": [size for scan in scans for size in scan.spacing_mm],
        "snr": [scan.snr for scan in scans if scan.snr is not None],
    }
    return TrainingRange(**{name: (round(min(v), 2), round(max(v), 2)) for name, v in values.items() if v})


def used_shells(shells: Shells, spec: ModelSpec) -> Shells:
    """The `shells` that the model takes for its own."""
    if spec.takes == "shell-set":
        return shells
    return [(b, n) for b, n in shells if any(is_near(b, own, spec) for own in spec.shells)]


def is_near(bval: float, shell: float, spec: ModelSpec) -> bool:
    """Whether the model takes measurements with b-value `bval` for its own `shell`, as of :class:`ShellFit`."""
    return abs(bval - shell) <= max(spec.shell_tolerance * shell, ALWAYS_NEAR)


def _directions(shells: Shells, spec: ModelSpec, drops_shells: bool) -> tuple[int, int]:
    """Fewest and most directions that a training leaves in a scan."""
    counts = [n for _, n in shells]
    fewest, _ = spec.subsample_directions or (max(counts), None)
    left = [min(n, fewest) for n in counts]
    return (min(left) if drops_shells else sum(left)), sum(counts)
