"""Scores of class maps, such as the number of fibres, where some voxels do not count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from monai.metrics import CumulativeIterationMetric, compute_confusion_matrix_metric
from torch import Tensor

from dmri_monai.metrics.subject_metric import counted, per_subject, plain

__all__ = ["ClassificationScore", "ConfusionMatrix", "accuracy", "confusion_matrix", "f1_scores"]

Score = Literal["f1", "accuracy"]


class ConfusionMatrix(CumulativeIterationMetric):
    """Counts (subjects, K, K): row = true class, column = predicted class; `aggregate` sums over subjects.

    y_pred: (B, K, X, Y, Z) scores or one-hot, or (B, 1, X, Y, Z) class numbers; y: (B, 1, X, Y, Z) class numbers,
    of which `ignore_index` and NaN do not count, or (B, K, X, Y, Z) one-hot, where voxels of no class do not;
    mask: (B, 1, X, Y, Z), voxels > 0 count.
    """

    def __init__(self, n_classes: int = 4, ignore_index: int = -1) -> None:
        super().__init__()
        self.n_classes, self.ignore_index = n_classes, ignore_index

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **inputs: Any) -> Tensor:
        given = per_subject(type(self).__name__, y_pred, {"label": y, **inputs})
        labels, masks = given["label"], given.get("mask")
        if y_pred.shape[2:] != labels.shape[2:]:
            raise ValueError(f"predictions have shape {tuple(y_pred.shape)}, labels {tuple(labels.shape)}")
        matrices = []
        for b in range(len(y_pred)):
            pred = class_numbers(plain(y_pred[b]), self.n_classes, self.ignore_index)
            true = class_numbers(labels[b], self.n_classes, self.ignore_index)
            valid = counted(true != self.ignore_index, None if masks is None else masks[b])
            matrices.append(confusion_matrix(pred[valid], true[valid], self.n_classes).cpu())
        return torch.stack(matrices)

    def aggregate(self) -> Tensor:
        """(K, K) counts of all subjects together."""
        matrices = super().get_buffer()
        if matrices is None:
            raise ValueError(f"{type(self).__name__}: no subject was measured")
        return matrices.sum(dim=0)


class ClassificationScore(ConfusionMatrix):
    """F1 of every class (and their macro mean), or accuracy: per subject, or of all voxels together.

    Labels and predictions as for `ConfusionMatrix`.  Rows: one value per class ("f1") or one value ("accuracy").
    A class that a subject has neither in truth nor in prediction is NaN and does not count; scikit-learn's macro
    mean over all classes would count it as 0.
    pooled: `aggregate` gives the score of the summed confusion matrix instead of the mean over subjects.
    names: of the classes.
    """

    def __init__(
        self,
        n_classes: int = 4,
        score: Score = "f1",
        *,
        pooled: bool = False,
        ignore_index: int = -1,
        names: Sequence[str] | None = None,
    ) -> None:
        if score not in get_args(Score):
            raise ValueError(f"score is {score!r}, expected one of {get_args(Score)}")
        super().__init__(n_classes, ignore_index)
        self.score = {"f1": f1_scores, "accuracy": accuracy}[score]
        self.pooled = pooled
        columns = [str(k) for k in range(n_classes)] if names is None else list(names)
        if len(columns) != n_classes:
            raise ValueError(f"{len(columns)} names for {n_classes} classes")
        self.names = tuple(columns) if score == "f1" else ("accuracy",)

    def get_buffer(self) -> Tensor | None:
        """(subjects, len(names)) scores."""
        matrices = super().get_buffer()
        return None if matrices is None else self.score(matrices)

    def aggregate(self) -> Tensor:
        total = super().aggregate()
        if self.pooled:
            return self.score(total).nanmean()
        rows = self.get_buffer()
        assert rows is not None  # super().aggregate() has checked it
        return rows.nanmean(dim=1).nanmean()


def class_numbers(values: Tensor, n_classes: int, ignore_index: int) -> Tensor:
    """(X, Y, Z) int64 classes of scores or one-hot (K, X, Y, Z), or of class numbers (1, X, Y, Z).

    `ignore_index` for NaN, and for voxels of a one-hot label that have no class.
    """
    if len(values) == n_classes > 1:
        return torch.where((values != 0).any(dim=0), values.argmax(dim=0), ignore_index)
    if len(values) != 1:
        raise ValueError(f"class map has {len(values)} channels, expected 1 or {n_classes}")
    numbers = values[0].nan_to_num(ignore_index).long() if values.is_floating_point() else values[0].long()
    wrong = ((numbers < 0) | (numbers >= n_classes)) & (numbers != ignore_index)
    if wrong.any():
        raise ValueError(
            f"class map holds {int(numbers[wrong][0])}, expected 0 to {n_classes - 1} or {ignore_index}"
        )
    return numbers


def confusion_matrix(pred: Tensor, true: Tensor, n_classes: int) -> Tensor:
    """(K, K) int64 counts of class numbers (V,): row = true class, column = predicted class."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    predicted = (pred >= 0) & (pred < n_classes)
    matrix: Tensor = multiclass_confusion_matrix(pred[predicted], true[predicted], n_classes)
    return matrix


def f1_scores(matrix: Tensor) -> Tensor:
    """(..., K) F1 = 2 TP / (2 TP + FP + FN) of each class of matrices (..., K, K); NaN for absent classes."""
    scores: Tensor = compute_confusion_matrix_metric("f1 score", _binary_counts(matrix))
    return scores


def accuracy(matrix: Tensor) -> Tensor:
    """(..., 1) share of right voxels of matrices (..., K, K), the sensitivity of all classes together; NaN for none."""
    together = _binary_counts(matrix).sum(dim=-2, keepdim=True)
    scores: Tensor = compute_confusion_matrix_metric("sensitivity", together)
    return scores


def _binary_counts(matrix: Tensor) -> Tensor:
    """(..., K, 4) float64 TP, FP, TN, FN of each class against the others, as MONAI's metrics take them."""
    matrix = matrix.double()
    hits = matrix.diagonal(dim1=-2, dim2=-1)
    false_alarms, misses = matrix.sum(dim=-2) - hits, matrix.sum(dim=-1) - hits
    rest = matrix.sum(dim=(-2, -1)).unsqueeze(-1) - hits - false_alarms - misses
    return torch.stack([hits, false_alarms, rest, misses], dim=-1)
