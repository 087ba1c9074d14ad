"""Errors of fibre directions: angles between axes, and the published polar angles."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from dmri_monai.metrics.subject_metric import SubjectMetric, counted, median
from dmri_monai.qspace.axes import axis_to_polar, harmonics_to_axis

__all__ = ["AngularError", "PolarAngleError", "axial_angle_deg"]

Output = Literal["vector", "l2"]
Peaks = Literal["principal", "all"]


class AngularError(SubjectMetric):
    """Angle between predicted and true axes in degrees, 0 to 90: median over voxels, and the share within a limit.

    y_pred: (B, 3n, X, Y, Z) peaks, or (B, 5, X, Y, Z) l = 2 harmonics (output="l2"), whose axis is their maximum;
    y: (B, 3n, X, Y, Z) peaks in the same frame; lengths and signs do not matter, zero and NaN mean no peak.
    mask: (B, 1, X, Y, Z), voxels > 0 count.
    peaks="principal": the first true peak against the first predicted one.  peaks="all": every true peak against
    the nearest predicted one, even if that is also the nearest to another true peak.  Where nothing is predicted for
    a true peak the error is 90 degrees.
    Columns: `median_deg` and `share_within`, the share of peaks with an error below `limit_deg`.
    """

    def __init__(
        self,
        output: Output = "vector",
        peaks: Peaks = "principal",
        limit_deg: float = 10.0,
        report: str = "median_deg",
    ) -> None:
        if output not in get_args(Output) or peaks not in get_args(Peaks):
            raise ValueError(
                f"output {output!r} and peaks {peaks!r}: expected one of {get_args(Output)} and {get_args(Peaks)}"
            )
        super().__init__(("median_deg", "share_within"), report)
        self.output, self.peaks, self.limit_deg = output, peaks, limit_deg

    def measure(self, pred: Tensor, target: Tensor, **inputs: Tensor) -> list[Tensor | float]:
        found = harmonics_to_axis(pred.unsqueeze(0))[0] if self.output == "l2" else pred
        found, true = _peaks(found), _peaks(target)
        if self.peaks == "principal":
            found, true = found[:1], true[:1]
        valid = counted(torch.ones_like(true[0, 0], dtype=torch.bool), inputs.get("mask"))
        present = (true.norm(dim=1) > 0) & valid
        errors = torch.stack([axial_angle_deg(found, peak.unsqueeze(0)).amin(dim=0) for peak in true])[
            present
        ]
        share = (errors < self.limit_deg).double().mean() if errors.numel() else torch.nan
        return [median(errors), share]


class PolarAngleError(SubjectMetric):
    """Mean squared and mean absolute error of (theta / pi, phi / pi) on the hemisphere phi >= 0, as published in 2022.

    y_pred: (B, 2, X, Y, Z) such angles, or (B, 3n, X, Y, Z) peaks, which are converted; y: (B, 3n, X, Y, Z) peaks
    in the same frame, the first counts, zero and NaN do not; mask: (B, 1, X, Y, Z).  Where a predicted axis has no
    direction its angles count as 0.
    For comparison only: the angles depend on the frame and jump at y = 0, so equal axes can be far apart.
    Columns: `mse`, `mae`.  Reference: Weninger et al. 2022 (BVM).
    """

    def __init__(self, report: str = "mse") -> None:
        super().__init__(("mse", "mae"), report)

    def measure(self, pred: Tensor, target: Tensor, **inputs: Tensor) -> list[Tensor | float]:
        angles = pred if len(pred) == 2 else axis_to_polar(_peaks(pred)[:1])[0].nan_to_num(0.0)
        true = axis_to_polar(_peaks(target)[:1])[0]
        if angles.shape != true.shape:
            raise ValueError(f"predicted angles have shape {tuple(angles.shape)}, labels {tuple(true.shape)}")
        valid = counted(true.isfinite().all(dim=0), inputs.get("mask"))
        error = (angles.double() - true.double())[:, valid]
        return [error.square().mean(), error.abs().mean()]


def axial_angle_deg(a: Tensor, b: Tensor) -> Tensor:
    """(B, ...) angle in degrees, 0 to 90, between axes (B, 3, ...) of any length; 90 where one is zero.

    atan2(|a x b|, |a . b|): right to rounding at 0 and 90 degrees, unlike the arc cosine.
    """
    a, b = torch.broadcast_tensors(a.double(), b.double())
    across, along = torch.linalg.cross(a, b, dim=1).norm(dim=1), (a * b).sum(dim=1).abs()
    angle = torch.rad2deg(torch.atan2(across, along))
    return torch.where((across == 0) & (along == 0), 90.0, angle)


def _peaks(field: Tensor) -> Tensor:
    """(n, 3, X, Y, Z) peaks of a field (3n, X, Y, Z), 0 for NaN."""
    if len(field) == 0 or len(field) % 3:
        raise ValueError(f"peaks have {len(field)} channels, expected a multiple of 3")
    peaks = field.unflatten(0, (-1, 3))
    return torch.where(peaks.isfinite().all(dim=1, keepdim=True), peaks, 0.0)
