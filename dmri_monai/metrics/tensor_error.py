"""What a restored signal makes of the diffusion tensor: errors of FA and of the principal direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD
from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.metrics.subject_metric import SubjectMetric, counted, median
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.shell_fit import ShellFit
from dmri_monai.qspace.synthesis import harmonics_to_signal
from dmri_monai.qspace.tensor import GAUSSIAN_B_MAX, fit_tensor, tensor_metrics

__all__ = ["HarmonicTensorError", "TensorError", "tensor_errors"]

COLUMNS = ("fa_mae", "fa_bias", "v1_median_deg")
N_DIRECTIONS = 64


class TensorError(SubjectMetric):
    """FA and V1 errors of a raw signal against the clean one, tensors fitted to both at the scan's own table.

    y_pred, y: (B, N, X, Y, Z) raw signals; bvals (B, N) s/mm²; bvecs_voxel (B, N, 3); optional valid (B, N) bool and
    mask (B, 1, X, Y, Z).  Columns: `fa_mae` and `fa_bias`, mean absolute and mean signed error of FA;
    `v1_median_deg`, median axial angle where the clean FA is above `min_fa`.  Measurements above `b_max` (s/mm²) do not
    enter the tensors, unless there are no others above `b0_threshold`, up to which measurements are b0.
    """

    def __init__(
        self,
        min_fa: float = 0.2,
        b_max: float = GAUSSIAN_B_MAX,
        report: str = "fa_mae",
        b0_threshold: float = B0_THRESHOLD,
    ) -> None:
        super().__init__(COLUMNS, report)
        self.min_fa, self.b_max, self.b0_threshold = min_fa, b_max, b0_threshold

    def measure(self, pred: Tensor, target: Tensor, **inputs: Tensor) -> list[Tensor | float]:
        missing = [key for key in ("bvals", "bvecs_voxel") if key not in inputs]
        if missing:
            raise ValueError(f"TensorError: {missing} not given; name them in MetricHandler(inputs=...)")
        table = inputs["bvals"][None], inputs["bvecs_voxel"][None]
        rows = (
            inputs["valid"].bool()
            if "valid" in inputs
            else torch.ones_like(inputs["bvals"], dtype=torch.bool)
        )
        low = rows & (inputs["bvals"] <= self.b_max)
        rows = low if (inputs["bvals"][low] > self.b0_threshold).any() else rows
        fits = [fit_tensor(signal.float()[None], *table, mask=rows[None]) for signal in (pred, target)]
        return tensor_errors(fits[0], fits[1], self.min_fa, inputs.get("mask"))


class HarmonicTensorError(SubjectMetric):
    """FA and V1 errors of harmonic channels, tensors fitted to the signals they stand for on 64 spread directions.

    y_pred, y: (B, C, X, Y, Z) channels of `signal_to_harmonics` with these `shells`, `l_max` and `fit`; optional
    mask (B, 1, X, Y, Z), without one voxels count where the target's b0 is above `fit.min_b0` times its median.
    The shells up to b = 1600 s/mm² are used, else the lowest.  Columns as of :class:`TensorError`.
    """

    def __init__(
        self,
        shells: Sequence[float],
        l_max: int = 4,
        *,
        fit: ShellFit | None = None,
        min_fa: float = 0.2,
        report: str = "fa_mae",
    ) -> None:
        super().__init__(COLUMNS, report)
        self.shells, self.l_max, self.fit, self.min_fa = list(shells), l_max, fit or ShellFit(), min_fa
        used = [b for b in self.shells if b <= GAUSSIAN_B_MAX] or [min(self.shells)]
        directions = spread_directions(N_DIRECTIONS)
        self.bvals = torch.cat([torch.zeros(1), *(torch.full((N_DIRECTIONS,), float(b)) for b in used)])[None]
        self.bvecs = torch.cat([directions.new_zeros(1, 3), *[directions] * len(used)])[None]

    def measure(self, pred: Tensor, target: Tensor, **inputs: Tensor) -> list[Tensor | float]:
        mask = inputs["mask"] if "mask" in inputs else (target[:1] > self.fit.min_b0)
        return tensor_errors(self._tensor(pred), self._tensor(target), self.min_fa, mask)

    def _tensor(self, harmonics: Tensor) -> Tensor:
        table = self.bvals.to(harmonics.device), self.bvecs.to(harmonics.device)
        signal = harmonics_to_signal(
            harmonics.float()[None], *table, shells=self.shells, l_max=self.l_max, fit=self.fit
        )
        return fit_tensor(signal, *table)


def tensor_errors(pred: Tensor, target: Tensor, min_fa: float, mask: Tensor | None) -> list[Tensor | float]:
    """`fa_mae`, `fa_bias` and `v1_median_deg` of tensors (1, 6, X, Y, Z) inside `mask` (1, X, Y, Z)."""
    found, true = tensor_metrics(pred), tensor_metrics(target)
    inside = counted(torch.ones_like(true.fa[0, 0], dtype=torch.bool), mask)
    error = (found.fa - true.fa)[0, 0][inside].double()
    directed = inside & (true.fa[0, 0] > min_fa)
    angles = axial_angle_deg(found.v1, true.v1)[0][directed]
    return [error.abs().mean(), error.mean(), median(angles)]
