"""How well predicted fibre orientation densities agree with true ones."""

from __future__ import annotations

import torch
from torch import Tensor

from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.metrics.subject_metric import SubjectMetric, counted, median
from dmri_monai.qspace.fibre_density import peaks_of_density

__all__ = ["DensityCorrelation", "FibreAgreement"]

LEAST_FRACTION = 0.2  # of fibres in the truth of a voxel that counts
MASS = (4 * torch.pi) ** 0.5  # from the first coefficient to the integral


class DensityCorrelation(SubjectMetric):
    """Mean angular correlation coefficient of functions on the sphere, where the truth has fibres.

    The cosine of the angle between the coefficients from l = 2 on: 1 for equal shapes.
    y_pred, y: (B, 45, X, Y, Z) orthonormal even harmonics in the same frame; voxels whose truth is NaN do not count.
    mask: (B, 1, X, Y, Z), voxels > 0 count.
    Reference: Anderson 2005, doi:10.1002/mrm.20667
    """

    def __init__(self) -> None:
        super().__init__(("correlation",))

    def measure(self, pred: Tensor, target: Tensor, **inputs: Tensor) -> list[Tensor | float]:
        found, true = (values[1:] for values in _with_fibres(pred, target, inputs.get("mask")))
        lengths = (found.norm(dim=0) * true.norm(dim=0)).clamp(min=1e-12)
        return [((found * true).sum(0) / lengths).mean()]


class FibreAgreement(SubjectMetric):
    """What follows from fibre orientation densities: direction and number of fibres, and their fraction.

    y_pred, y, mask: as of :class:`DensityCorrelation`.
    Columns: `angle_deg`, the median angle between the largest peaks, 90 where nothing is predicted; `same_count`, the
    share of voxels with the true number of peaks; `mass_error`, the mean absolute error of the fibres' fraction.
    """

    def __init__(self, report: str = "angle_deg") -> None:
        super().__init__(("angle_deg", "same_count", "mass_error"), report)

    def measure(self, pred: Tensor, target: Tensor, **inputs: Tensor) -> list[Tensor | float]:
        found, true = _with_fibres(pred, target, inputs.get("mask"))
        if found.shape[1] == 0:
            return [torch.nan] * 3
        peaks, true_peaks = (torch.nan_to_num(peaks_of_density(values)) for values in (found, true))
        counts, true_counts = (values.unflatten(0, (-1, 3)).any(1).sum(0) for values in (peaks, true_peaks))
        angles = axial_angle_deg(peaks[:3].T, true_peaks[:3].T)
        same = (counts == true_counts).double().mean()
        return [median(angles[true_counts > 0]), same, ((found[0] - true[0]) * MASS).abs().mean()]


def _with_fibres(pred: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """(45, V) of both in the voxels whose truth has fibres, float64."""
    if pred.shape != target.shape:
        raise ValueError(f"predicted density has shape {tuple(pred.shape)}, truth {tuple(target.shape)}")
    valid = counted(target.isfinite().all(0) & (target[0] * MASS > LEAST_FRACTION), mask)
    return pred[:, valid].double(), target[:, valid].double()
