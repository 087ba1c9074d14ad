"""What a BIDS JSON sidecar says about the acquisition, as world vectors and plain numbers.

`PhaseEncodingDirection` and `SliceEncodingDirection` name axes of the *file's* array; after a reorientation
they would be wrong, so they are turned into world vectors while the file's affine is at hand.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmri_monai.io.nifti import NiftiSource

__all__ = ["acquisition_meta", "read_json"]

AXES = {f"{axis}{sign}": (i, -1.0 if sign else 1.0) for i, axis in enumerate("ijk") for sign in ("", "-")}


def read_json(path: Path) -> dict[str, Any]:
    """The object a JSON file holds; ValueError naming the file for anything else."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error}): {path}") from error
    if not isinstance(content, dict):
        raise ValueError(f"JSON holds {type(content).__name__}, expected an object: {path}")
    return content


def acquisition_meta(files: tuple[Path, ...], source: NiftiSource) -> dict[str, Any]:
    """Known ones of phase_encoding_world (3,), slice_world (3,), total_readout_time_s, slice_timing_s (n,),
    multiband_factor.

    World vectors are float32 unit vectors (RAS+) along increasing phase-encoding or slice index; "j-" turns
    the sign. `files` are merged general to specific.  Raises ValueError naming the file, the key and its
    value.
    """
    entries = {
        key: (value, path) for path in files for key, value in read_json(path).items() if value is not None
    }
    meta: dict[str, Any] = {}
    if "PhaseEncodingDirection" in entries:
        meta["phase_encoding_world"] = _world(
            *_axis("PhaseEncodingDirection", *entries["PhaseEncodingDirection"]), source
        )
    if "TotalReadoutTime" in entries:
        meta["total_readout_time_s"] = _positive("TotalReadoutTime", *entries["TotalReadoutTime"])
    if "MultibandAccelerationFactor" in entries:
        factor = _positive("MultibandAccelerationFactor", *entries["MultibandAccelerationFactor"])
        meta["multiband_factor"] = max(1, round(factor))
    return meta | _slices(entries, source)


def _slices(entries: dict[str, tuple[Any, Path]], source: NiftiSource) -> dict[str, Any]:
    """Slice direction and times; without a given direction, the header's slice axis or k (BIDS default)."""
    axis_sign = None
    if "SliceEncodingDirection" in entries:
        axis_sign = _axis("SliceEncodingDirection", *entries["SliceEncodingDirection"])
    elif source.slice_axis is not None:
        axis_sign = (source.slice_axis, 1.0)
    elif "SliceTiming" in entries:
        axis_sign = (2, 1.0)
    meta: dict[str, Any] = {} if axis_sign is None else {"slice_world": _world(*axis_sign, source)}
    if "SliceTiming" in entries and axis_sign is not None:
        meta["slice_timing_s"] = _timing(*entries["SliceTiming"], source.shape[axis_sign[0]])
    return meta


def _timing(value: Any, path: Path, n_slices: int) -> Tensor:
    if not isinstance(value, list):
        raise ValueError(f"SliceTiming is {_short(value)}, expected a list of seconds in {path}")
    if len(value) != n_slices:
        raise ValueError(f"SliceTiming has {len(value)} entries for {n_slices} slices in {path}")
    for i, time in enumerate(value):
        if not _is_number(time) or time < 0:
            raise ValueError(
                f"SliceTiming entry {i} is {_short(time)}, expected seconds of at least 0 in {path}"
            )
    return torch.tensor(value, dtype=torch.float32)


def _axis(key: str, value: Any, path: Path) -> tuple[int, float]:
    if not isinstance(value, str) or value not in AXES:
        raise ValueError(f"{key} is {_short(value)}, expected one of {', '.join(AXES)} in {path}")
    return AXES[value]


def _world(axis: int, sign: float, source: NiftiSource) -> Tensor:
    column = source.affine[:3, axis]
    unit: Tensor = sign * column / column.norm()
    return unit.float() + 0.0


def _positive(key: str, value: Any, path: Path) -> float:
    if not _is_number(value) or value <= 0:
        raise ValueError(f"{key} is {_short(value)}, expected a number above 0 in {path}")
    return float(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and abs(value) < 1e12 if isinstance(value, float) else abs(value) < 10**12


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
