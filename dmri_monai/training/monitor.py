"""Which number of a validation decides which checkpoint is kept and when training stops."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any, Literal, get_args

from ignite.metrics import Average, Metric
from monai.transforms import CopyItemsd, MapTransform

from dmri_monai.training.pretext import loss_of

__all__ = ["Monitored"]

By = Literal["metric", "loss"]
RAW = {"pred": "raw_pred", "label": "raw_label"}


class Monitored:
    """The number of a validation that selects checkpoints: the objective's key "metric", or its "loss".

    objective: of a task's config: `loss`, `key_metric`, `validate` (from the network's output and the label to what the
    metric takes), `lower_is_better`.
    metrics: for `key_val_metric` of a MONAI evaluator, by name.  postprocessing: what they need before them.
    """

    def __init__(self, by: By, objective: Mapping[str, Any]) -> None:
        if by not in get_args(By):
            raise ValueError(f"monitor is {by!r}, expected one of {get_args(By)}")
        self.postprocessing: list[MapTransform] = _flat(objective["validate"])
        self.metrics: dict[str, Metric] = {
            f"val_{name}": metric for name, metric in objective["key_metric"].items()
        }
        self.lower_is_better = bool(objective["lower_is_better"])
        if by == "loss":  # which sees the network's output as it is
            keep = CopyItemsd(list(RAW), names=list(RAW.values()))
            self.postprocessing = [keep, *self.postprocessing]
            output = loss_of(objective["loss"], RAW["pred"], RAW["label"])
            self.metrics, self.lower_is_better = {"val_loss": Average(output_transform=output)}, True

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


def _flat(transforms: Any) -> list[Any]:
    """A list of transforms, of which an entry may itself be several."""
    if not isinstance(transforms, list | tuple):
        return [transforms]
    return [one for entry in transforms for one in _flat(entry)]
