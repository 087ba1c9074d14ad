"""What an artifact knows of a scan: gradient table, phase-encoding and slice axes, on the canonical grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmri_monai.artifacts.engine.canonical_grid import Reorientation
from dmri_monai.artifacts.magnitudes import check_finite, check_non_negative
from dmri_monai.gradients import B0_THRESHOLD, grid_rotation

__all__ = ["SCAN_META", "ScanContext", "describe"]

# what an artifact uses of an image's meta data, where known
SCAN_META = (
    "phase_encoding_world",
    "slice_world",
    "total_readout_time_s",
    "slice_timing_s",
    "multiband_factor",
    "b0_threshold",
)


@dataclass(frozen=True)
class ScanContext:
    """One scan on the canonical grid.

    shape: (X, Y, Z).  bvals (N,) in s/mm2; bvecs_voxel (N, 3) in the canonical voxel frame, zero for b0.
    affine: (4, 4) canonical, mm.  phase_axis, slice_axis: canonical axes; phase_sign: polarity along
    phase_axis, None where the header does not tell.  reference: signal of an unweighted foreground voxel
    (image units).  field_hz: (X, Y, Z) measured field map, if there is one.  b0_threshold: volumes up to this
    b-value (s/mm2) are unweighted.
    """

    shape: tuple[int, int, int]
    bvals: np.ndarray
    bvecs_voxel: np.ndarray
    affine: np.ndarray
    phase_axis: int
    slice_axis: int
    phase_sign: int | None = None
    total_readout_time_s: float | None = None
    slice_timing_s: tuple[float, ...] | None = None
    multiband: int = 1
    reference: float = 0.0
    field_hz: Tensor | None = None
    b0_threshold: float = B0_THRESHOLD

    @property
    def n_volumes(self) -> int:
        return len(self.bvals)

    @property
    def n_slices(self) -> int:
        return self.shape[self.slice_axis]

    @property
    def readout_axis(self) -> int:
        return 3 - self.phase_axis - self.slice_axis

    @property
    def rotation(self) -> np.ndarray:
        """(3, 3) orthogonal Q of the canonical grid: v_world = Q v_voxel."""
        return grid_rotation(torch.from_numpy(self.affine)).numpy()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        x, y, z = (float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def weighted(self) -> np.ndarray:
        """(N,) bool: diffusion-weighted volumes."""
        return self.bvals > self.b0_threshold


def describe(
    image: Tensor,
    table: tuple[np.ndarray, np.ndarray],
    affine: np.ndarray,
    turn: Reorientation,
    meta: Mapping[str, Any] | None = None,
    field_hz: Tensor | None = None,
) -> ScanContext:
    """Scan of a canonical `image` (N, X, Y, Z).  table: b-values (N,) and b-vectors (N, 3); these and
    `affine` are those of the array before `turn`.

    Of `meta`, `SCAN_META` is used where present.  Without them phase encoding is anterior-posterior and
    slices are axial; polarity and readout time are then drawn.
    """
    meta = meta or {}
    bvals, bvecs_voxel = table
    shape = (image.shape[-3], image.shape[-2], image.shape[-1])
    canonical = turn.affine(affine, shape)
    rotation = grid_rotation(torch.from_numpy(canonical)).numpy()
    slice_axis, slice_sign = _nearest_axis("slice_world", meta.get("slice_world"), (0.0, 0.0, 1.0), rotation)
    phase = meta.get("phase_encoding_world")
    phase_axis, phase_sign = _nearest_axis("phase_encoding_world", phase, (0.0, 1.0, 0.0), rotation)
    if phase_axis == slice_axis:
        raise ValueError(
            f"phase_encoding_world {phase} and slice_world {meta.get('slice_world')} share an axis"
        )
    timing = _slice_timing(meta.get("slice_timing_s"), shape[slice_axis], slice_sign)
    multiband = _multiband(meta.get("multiband_factor"))
    threshold = float(meta.get("b0_threshold", B0_THRESHOLD))
    trt = meta.get("total_readout_time_s")
    if trt is not None:
        check_non_negative("total_readout_time_s", float(trt))
    return ScanContext(
        shape=shape,
        bvals=bvals,
        bvecs_voxel=turn.vectors(bvecs_voxel),
        affine=canonical,
        phase_axis=phase_axis,
        slice_axis=slice_axis,
        phase_sign=phase_sign if phase is not None else None,
        total_readout_time_s=None if trt is None else float(trt),
        slice_timing_s=timing,
        multiband=multiband if shape[slice_axis] % multiband == 0 else 1,  # a crop breaks the sets
        reference=_reference(image, bvals, threshold),
        field_hz=field_hz,
        b0_threshold=threshold,
    )


def _nearest_axis(name: str, world: Any, default: tuple[float, ...], rotation: np.ndarray) -> tuple[int, int]:
    vector = np.asarray(default if world is None else world, dtype=np.float64).reshape(-1)
    if vector.shape != (3,) or not abs(np.linalg.norm(vector) - 1) < 0.05:
        raise ValueError(f"{name} is {world}, expected a unit vector (3,)")
    voxel = rotation.T @ vector
    axis = int(np.abs(voxel).argmax())
    return axis, 1 if voxel[axis] > 0 else -1


def _slice_timing(timing: Any, n_slices: int, sign: int) -> tuple[float, ...] | None:
    """Acquisition time of every canonical slice; None when unknown or when a crop removed slices."""
    if timing is None or len(timing) != n_slices:
        return None
    values = [float(t) for t in timing]
    check_finite("slice_timing_s", torch.tensor(values))
    return tuple(values if sign > 0 else values[::-1])


def _multiband(factor: Any) -> int:
    """Whole number of slices excited together; 1 where the header does not tell (none, or 0)."""
    if factor is None or float(factor) == 0:
        return 1
    if not (float(factor) >= 1 and float(factor).is_integer()):
        raise ValueError(f"multiband_factor is {factor}, expected a whole number, at least 1")
    return int(factor)


def _reference(image: Tensor, bvals: np.ndarray, b0_threshold: float) -> float:
    """Mean unweighted signal where it is above its own overall mean: brain and skull, not air."""
    unweighted = np.flatnonzero(bvals <= b0_threshold)
    mean = image[torch.from_numpy(unweighted)].mean(0) if len(unweighted) else image.mean(0)
    overall = _total(mean) / mean.numel()
    inside = mean > overall
    count = int(inside.sum())
    return float(_total(mean * inside) / count) if count else float(overall)  # none: uniform signal


def _total(volume: Tensor) -> Tensor:
    """Sum of (X, Y, Z) plane by plane: its rounding then does not depend on the number of threads."""
    return volume.flatten(1).sum(1).sum()
