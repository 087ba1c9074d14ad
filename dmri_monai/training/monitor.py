"""Which number of a validation decides which checkpoint is kept and when training stops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from typing import Any, Literal, get_args

from ignite.metrics import Average, Metric
from monai.transforms import CopyItemsd, MapTransform

from dmri_monai.tasks.tasks import Task
from dmri_monai.training.pretext import loss_of

__all__ = ["Selection", "select_by"]

By = Literal["metric", "loss"]
RAW = {"pred": "raw_pred", "label": "raw_label"}


@dataclass(frozen=True)
class Selection:
    """metrics: for `key_val_metric` of a MONAI evaluator, by name; postprocessing: what they need before them."""

    metrics: dict[str, Metric]
    postprocessing: list[MapTransform]
    lower_is_better: bool

    @property
    def name(self) -> str:
        return next(iter(self.metrics))

    @property
    def sign(self) -> float:
        """Factor that makes larger better."""
        return -1.0 if self.lower_is_better else 1.0

    def is_better(self, current: float, best: float) -> bool:
        """For `metric_cmp_fn` of MONAI's evaluators; anything is better than no value (NaN)."""
        return isnan(best) or self.sign * current > self.sign * best


def select_by(by: By, task: Task, loss: Callable[[Any, Any], Any]) -> Selection:
    """Select by the task's key "metric", or by the validation "loss", which sees the network's output as it is."""
    if by not in get_args(By):
        raise ValueError(f"selection is {by!r}, expected one of {get_args(By)}")
    if by == "metric":
        return Selection({task.validation_key: task.metric()}, task.validate(), task.lower_is_better)
    keep = CopyItemsd(list(RAW), names=list(RAW.values()))
    metric = Average(output_transform=loss_of(loss, RAW["pred"], RAW["label"]))
    return Selection({"val_loss": metric}, [keep, *task.validate()], True)
