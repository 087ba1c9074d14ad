"""What the metrics share: one row of named values per subject, and which voxels count."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric
from torch import Tensor

__all__ = ["SubjectMetric", "counted", "median", "per_subject", "plain"]


class SubjectMetric(CumulativeIterationMetric):
    """A MONAI metric whose buffer is (subjects, len(names)): one row of values per subject, NaN where undefined.

    names: what the columns are.  report: the column whose mean over subjects `aggregate` returns; None: the mean of
    all columns.  NaN is left out of means.  Subclasses give `measure`.
    """

    def __init__(self, names: Sequence[str], report: str | None = None) -> None:
        super().__init__()
        self.names = tuple(names)
        self.report = report
        if report is not None and report not in self.names:
            raise ValueError(f"report is {report!r}, expected one of {self.names}")

    @abstractmethod
    def measure(self, pred: Tensor, target: Tensor, **inputs: Tensor) -> list[Tensor | float]:
        """The values, in the order of `names`, of one subject: tensors (C, ...) without a batch axis."""

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **inputs: Any) -> Tensor:
        given = per_subject(type(self).__name__, y_pred, {"label": y, **inputs})
        y = given.pop("label")
        rows = []
        for b in range(len(y_pred)):
            values = self.measure(plain(y_pred[b]), y[b], **{k: v[b] for k, v in given.items()})
            rows.append(torch.stack([torch.as_tensor(v, dtype=torch.float64).cpu() for v in values]))
        return torch.stack(rows)

    def aggregate(self) -> Tensor:
        """Mean over the subjects of the reported column."""
        values = self.get_buffer()
        if values is None:
            raise ValueError(f"{type(self).__name__}: no subject was measured")
        if self.report is not None:
            values = values[:, [self.names.index(self.report)]]
        return values.nanmean()


def per_subject(metric: str, pred: Tensor, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The inputs that are given, without meta data; ValueError where one is not of as many subjects as `pred`."""
    given = {key: plain(value) for key, value in inputs.items() if value is not None}
    for key in ("label", *given):
        if key not in given or len(given[key]) != len(pred):
            n = len(given[key]) if key in given else 0
            raise ValueError(f"{metric}: {key} of {n} subjects for {len(pred)} predictions")
    return given


def plain(values: Any) -> Tensor:
    """A tensor without meta data."""
    return torch.as_tensor(values).detach().as_subclass(Tensor)


def counted(valid: Tensor, mask: Tensor | None) -> Tensor:
    """`valid` (X, Y, Z) bool and, where there is one, `mask` (1, X, Y, Z) > 0."""
    if mask is None:
        return valid
    if tuple(mask.shape) != (1, *valid.shape):
        raise ValueError(f"mask has shape {tuple(mask.shape)}, expected {(1, *valid.shape)}")
    return valid & (mask[0] > 0).to(valid.device)


def median(values: Tensor) -> Tensor:
    """Median of (V,) values, the mean of the middle two for an even number; NaN for none."""
    if values.numel() == 0:
        return values.new_full((), torch.nan)
    ordered, n = values.flatten().sort().values, values.numel()
    return (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
