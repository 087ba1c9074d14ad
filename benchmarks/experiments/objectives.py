"""What every task asks of a network: loss and scores, in the brain alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss, DiceFocalLoss
from torch import Tensor

from dmri_monai.losses import AxialLoss, CrossingsLoss
from dmri_monai.metrics import AngularError, ClassificationScore, VoxelRanking
from dmri_monai.tasks import find_task

__all__ = ["OBJECTIVES", "Objective"]

Scores = dict[str, float]
NUMBERS = ("no fibre", "1 fibre", "2 fibres", "3 fibres")


@dataclass(frozen=True)
class Objective:
    """loss(pred, label, weight): of (K, V) outputs and (k, V) labels of the brain's voxels; `weight`: of rare classes.

    scores(pred, label): of the same of one head, column -> value, NaN where it has none; probabilities or classes or
    axes, as `decide` makes them of outputs.  key: the column that validates.  offset(preds, labels): of the heads that
    validate, what is added to outputs before `decide`.
    """

    irreps_out: str
    loss: Callable[[Tensor, Tensor, float], Tensor]
    decide: Callable[[Tensor], Tensor]
    scores: Callable[[Tensor, Tensor], Scores]
    key: str
    lower_is_better: bool = False
    weights: tuple[float, ...] = (1.0,)  # that the recipe search tries, the first by default
    offset: Callable[[Sequence[Tensor], Sequence[Tensor]], float] = lambda preds, labels: 0.0

    def value(self, scores: Mapping[str, float]) -> float:
        """The key score of one head: the mean over its classes, larger is better."""
        found = torch.tensor([v for k, v in scores.items() if k.startswith(self.key)])
        return float(found.nanmean()) * (-1 if self.lower_is_better else 1)


def _lesion_loss(pred: Tensor, label: Tensor, weight: float) -> Tensor:
    """Cross entropy with `weight` on lesions, and MONAI's Dice with focal loss."""
    entropy = F.binary_cross_entropy_with_logits(pred, label, pos_weight=pred.new_tensor(weight))
    return entropy + DiceFocalLoss(sigmoid=True)(pred[None], label[None])


def _tissue_loss(pred: Tensor, label: Tensor, weight: float) -> Tensor:
    rare = pred.new_tensor([1.0, 1.0, 1.0, weight])  # fluid
    return DiceCELoss(to_onehot_y=True, softmax=True, weight=rare)(pred[None], label[None])


def _crossing_loss(pred: Tensor, label: Tensor, weight: float) -> Tensor:
    several = [1.0, 1.0, weight, weight]
    return CrossingsLoss(class_weights=several)(_volume(pred), _volume(label))


def _axis_loss(pred: Tensor, label: Tensor, weight: float) -> Tensor:
    return AxialLoss(output="l2")(_volume(pred), _volume(label))


def _volume(values: Tensor) -> Tensor:
    """(1, K, V, 1, 1) of (K, V): metrics and losses are made for volumes."""
    return values[None, :, :, None, None]


def _lesion_scores(pred: Tensor, label: Tensor) -> Scores:
    found = {
        name: _row(VoxelRanking(score=name), pred, label)[0]  # type: ignore[arg-type]
        for name in ("average_precision", "roc_auc")
    }
    return {**found, "dice": _dice(pred >= 0.5, label > 0)}


def _lesion_offset(preds: Sequence[Tensor], labels: Sequence[Tensor]) -> float:
    """The offset under which the probability one half gives the highest mean Dice: a weighted loss shifts it."""
    offsets = [round(0.25 * i, 2) for i in range(-24, 25)]

    def dice(offset: float) -> float:
        found = [_dice(p + offset >= 0, label > 0) for p, label in zip(preds, labels, strict=True)]
        return float(torch.tensor(found).nanmean())

    return max(offsets, key=dice)


def _tissue_scores(pred: Tensor, label: Tensor) -> Scores:
    names = find_task("tissue").class_names
    return {f"dice_{name}": _dice(pred == i, label == i) for i, name in enumerate(names, 1)}


def _dice(found: Tensor, true: Tensor) -> float:
    total = float(found.sum() + true.sum())
    return 2 * float((found & true).sum()) / total if total else float("nan")


def _crossing_scores(pred: Tensor, label: Tensor) -> Scores:
    row = _row(ClassificationScore(4, names=NUMBERS), pred, label)
    return {f"macro_f1_{name}": value for name, value in zip(NUMBERS, row, strict=True)}


def _axis_scores(pred: Tensor, label: Tensor, output: str) -> Scores:
    metric = AngularError(output=output)  # type: ignore[arg-type]
    row = _row(metric, pred, label)
    return {f"angular_error_{name}": value for name, value in zip(metric.names, row, strict=True)}


def _row(metric: Any, pred: Tensor, label: Tensor) -> list[float]:
    metric(_volume(pred), _volume(label))
    row: list[float] = metric.get_buffer()[0].tolist()
    return row


def _largest(pred: Tensor) -> Tensor:
    return pred.argmax(0, keepdim=True).float()


OBJECTIVES = {
    "lesion": Objective(
        "1x0e", _lesion_loss, torch.sigmoid, _lesion_scores, "average_precision",
        weights=(10.0, 1.0, 30.0), offset=_lesion_offset,
    ),
    "tissue": Objective("4x0e", _tissue_loss, _largest, _tissue_scores, "dice", weights=(1.0, 3.0)),
    "crossings": Objective(
        "4x0e", _crossing_loss, _largest, _crossing_scores, "macro_f1", weights=(1.0, 3.0, 0.3)
    ),
    "orientation": Objective(
        "1x2e", _axis_loss, lambda pred: pred, partial(_axis_scores, output="l2"), "angular_error_median_deg",
        lower_is_better=True,
    ),
}  # fmt: skip
axis_scores = partial(_axis_scores, output="vector")  # of a classical method's peaks
