"""Errors of volume fractions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from dmri_monai.metrics.subject_metric import SubjectMetric, counted

__all__ = ["FractionError"]

Score = Literal["absolute", "correlation"]


class FractionError(SubjectMetric):
    """Mean absolute error of each fraction, or its correlation with the truth, over the voxels that hold any tissue.

    y_pred, y: (B, n, X, Y, Z) fractions, voxels whose truth is NaN do not count.  Tissue: the fractions of truth and
    prediction sum to more than 0.05 in one of both.  mask: (B, 1, X, Y, Z), voxels > 0 count.
    score: "absolute" or "correlation" (Pearson's; NaN where a fraction does not vary).  names: of the n columns.
    """

    def __init__(self, score: Score = "absolute", names: Sequence[str] = ("WM", "GM", "CSF")) -> None:
        if score not in get_args(Score):
            raise ValueError(f"score is {score!r}, expected one of {get_args(Score)}")
        super().__init__(names)
        self.score = score

    def measure(self, pred: Tensor, target: Tensor, **inputs: Tensor) -> list[Tensor | float]:
        if pred.shape != target.shape or len(pred) != len(self.names):
            raise ValueError(
                f"fractions {tuple(pred.shape)} and truth {tuple(target.shape)}, expected {len(self.names)} of both"
            )
        tissue = torch.maximum(pred.sum(0), torch.nan_to_num(target).sum(0)) > 0.05
        valid = counted(target.isfinite().all(0) & tissue, inputs.get("mask"))
        found, true = pred[:, valid].double(), target[:, valid].double()
        if found.shape[1] == 0:
            return [torch.nan] * len(self.names)
        if self.score == "absolute":
            return list((found - true).abs().mean(1))
        found, true = (values - values.mean(1, keepdim=True) for values in (found, true))
        return list((found * true).sum(1) / (found.norm(dim=1) * true.norm(dim=1)))
