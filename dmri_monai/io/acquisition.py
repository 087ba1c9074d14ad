"""What BIDS JSON sidecars say about the acquisition, as world vectors and plain numbers.

`PhaseEncodingDirection` and `SliceEncodingDirection` name axes of the *file's* array; after a reorientation they would
be wrong, so they are turned into world vectors while the file's affine is at hand.  Reading a scan needs none of the
entries: what is wrong is warned of and left out, and `acquisition_errors` says so to whoever needs it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmri_monai.io.json_sidecar import read_json, short
from dmri_monai.io.nifti import NiftiSource

__all__ = ["acquisition_meta", "require_usable"]

AXES = {f"{axis}{sign}": (i, -1.0 if sign else 1.0) for i, axis in enumerate("ijk") for sign in ("", "-")}
LONGEST_TR_S = 60.0  # a larger number is one of milliseconds
LONGEST_READOUT_S = 1.0


def acquisition_meta(files: tuple[Path, ...], source: NiftiSource) -> dict[str, Any]:
    """Known ones of phase_encoding_world (3,), slice_world (3,), total_readout_time_s, slice_timing_s (n,),
    multiband_factor.

    World vectors are float32 unit vectors (RAS+) along increasing phase-encoding or slice index; "j-" turns the sign.
    `files` are merged general to specific.  Entries that are wrong or contradict each other are warned of, naming
    file, key and value, and left out; `acquisition_errors` then says which, in one text.
    """
    return _Entries(files, source).meta()


def require_usable(meta: Mapping[str, Any]) -> None:
    """ValueError where a scan's sidecar holds acquisition entries that had to be left out: for those who need them."""
    if errors := meta.get("acquisition_errors"):
        raise ValueError(f"simulated artifacts follow the sidecar, and an entry of it is wrong: {errors}")


class _Entries:
    """The merged entries of JSON files, and what was wrong with those that have been asked for."""

    def __init__(self, files: tuple[Path, ...], source: NiftiSource) -> None:
        self.source = source
        self.errors: list[str] = []
        self.found = {
            key: (value, path)
            for path in files
            for key, value in read_json(path).items()
            if value is not None
        }

    def meta(self) -> dict[str, Any]:
        phase = self.take("PhaseEncodingDirection", _axis)
        readout = self.take("TotalReadoutTime", _readout_s)
        slices = self.slices(phase)
        known = {
            "phase_encoding_world": self.world(phase) if phase else None,
            "total_readout_time_s": readout,
            "multiband_factor": self.multiband(slices.get("slice_timing_s")),
            **slices,
            "acquisition_errors": "; ".join(self.errors) or None,
        }
        return {name: value for name, value in known.items() if value is not None}

    def take(self, key: str, check: Callable[[Any], Any]) -> Any:
        """The checked value of `key`; None where it is not there or, after a warning, where it is wrong."""
        if key not in self.found:
            return None
        value, path = self.found[key]
        try:
            return check(value)
        except ValueError as error:
            self.leave_out(key, f"is {short(value)}, {error}", path)
            return None

    def leave_out(self, key: str, why: str, path: Path) -> None:
        self.errors.append(f"{key} {why}: {path}")
        warnings.warn(f"{key} {why}; left out: {path}", stacklevel=2)

    def slices(self, phase: tuple[int, float] | None) -> dict[str, Any]:
        """Slice direction and times; without a given direction, the header's slice axis or k (BIDS default)."""
        given = self.take("SliceEncodingDirection", _axis)
        default = 2 if self.source.slice_axis is None else self.source.slice_axis
        axis, sign = given or (default, 1.0)
        if given and phase and given[0] == phase[0]:
            path = self.found["SliceEncodingDirection"][1]
            self.leave_out("SliceEncodingDirection", "and PhaseEncodingDirection name one axis", path)
            return {}
        timing = self.take("SliceTiming", lambda value: _timing(value, self.source.shape[axis], self.tr_s()))
        known = given is not None or self.source.slice_axis is not None or timing is not None
        return {"slice_world": self.world((axis, sign)) if known else None, "slice_timing_s": timing}

    def multiband(self, timing: Tensor | None) -> int | None:
        """MultibandAccelerationFactor, unless the slice times (n,) say another thing about slices excited together."""
        factor: int | None = self.take("MultibandAccelerationFactor", _whole)
        if factor is None or timing is None or len(timing) == 1:
            return factor
        distinct = len(timing.unique())
        if (distinct == len(timing)) == (factor == 1):
            return factor
        path = self.found["MultibandAccelerationFactor"][1]
        times = f"{distinct} times for {len(timing)} slices"
        self.leave_out("MultibandAccelerationFactor", f"is {factor}, but SliceTiming has {times}", path)
        return None

    def tr_s(self) -> float | None:
        """RepetitionTime; None where there is none that seconds could be."""
        value: Any = self.found.get("RepetitionTime", (None,))[0]
        return float(value) if _is_number(value) and 0 < value <= LONGEST_TR_S else None

    def world(self, axis_sign: tuple[int, float]) -> Tensor:
        axis, sign = axis_sign
        column = self.source.affine[:3, axis]
        unit: Tensor = sign * column / column.norm()
        return unit.float() + 0.0


def _axis(value: Any) -> tuple[int, float]:
    if not isinstance(value, str) or value not in AXES:
        raise ValueError(f"expected one of {', '.join(AXES)}")
    return AXES[value]


def _readout_s(value: Any) -> float:
    if not _is_number(value) or value <= 0:
        raise ValueError("expected a number of seconds above 0")
    if value > LONGEST_READOUT_S:
        raise ValueError(f"expected seconds, at most {LONGEST_READOUT_S:g}: these look like milliseconds")
    return float(value)


def _whole(value: Any) -> int:
    if not _is_number(value) or value < 1 or value != int(value):
        raise ValueError("expected a whole number of at least 1")
    return int(value)


def _timing(value: Any, n_slices: int, tr_s: float | None) -> Tensor:
    if not isinstance(value, list):
        raise ValueError("expected a list of seconds")
    if len(value) != n_slices:
        raise ValueError(f"it has {len(value)} entries for {n_slices} slices")
    for i, time in enumerate(value):
        if not _is_number(time) or time < 0:
            raise ValueError(f"entry {i} is {short(time)}, expected seconds of at least 0")
    limit = LONGEST_TR_S if tr_s is None else tr_s
    if max(value) > limit:
        beside = f"{limit:g} s" if tr_s is None else f"RepetitionTime {limit:g} s"
        guess = (
            ": these look like milliseconds" if max(value) > 10 * limit else ", which no slice can lie beyond"
        )
        raise ValueError(f"up to {max(value):g} beside {beside}{guess}")
    return torch.tensor(value, dtype=torch.float32)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and abs(value) < 1e12 if isinstance(value, float) else abs(value) < 10**12
