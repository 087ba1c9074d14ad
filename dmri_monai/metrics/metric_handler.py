"""Attach a metric to a MONAI evaluator, with inputs beyond prediction and label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics.metric import reinit__is_reduced
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import CumulativeIterationMetric

__all__ = ["MetricHandler"]


class MetricHandler(IgniteMetricHandler):
    """`IgniteMetricHandler` of any MONAI metric, with further `inputs` from the evaluator's batch.

    metric_fn: the metric.  inputs: keyword of the metric -> key of the batch, e.g. {"mask": "mask"}, or
    {"bvals": "bvals", "bvecs_voxel": "bvecs_voxel"}; the values are those after postprocessing.
    output_transform: gives prediction and label, by default those of the evaluator.
    `engine.state.metrics[name]` holds the metric's `aggregate`, `engine.state.metric_details[name]` one row
    per subject, and `engine.state.metric_columns[name]` the names of their columns where the metric has some.
    ValueError naming the metric and the keys where the batch lacks an input.
    """

    def __init__(
        self,
        metric_fn: CumulativeIterationMetric,
        inputs: Mapping[str, str] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        save_details: bool = True,
    ) -> None:
        self.inputs = dict(inputs or {})
        output_transform = output_transform or from_engine(["pred", "label"])
        super().__init__(metric_fn=metric_fn, output_transform=output_transform, save_details=save_details)

    def attach(self, engine: Engine, name: str) -> None:
        super().attach(engine, name)
        columns = getattr(self.metric_fn, "names", None)
        if columns:
            engine.state.metric_columns = {
                **getattr(engine.state, "metric_columns", {}),
                name: tuple(columns),
            }

    def iteration_completed(self, engine: Engine) -> None:
        # ignite would hand over lists item by item, without saying which item of the batch it is
        self.update(self._output_transform(engine.state.output))

    @reinit__is_reduced
    def update(self, output: Sequence[Any]) -> None:
        """output: prediction and label, batch-first tensors or lists of channel-first ones."""
        pred, label = output
        more = {keyword: self._from_batch(key) for keyword, key in self.inputs.items()}
        if isinstance(pred, torch.Tensor):
            self.metric_fn(pred, label, **more)
            return
        for i, (one, truth) in enumerate(zip(pred, label, strict=True)):
            given = {keyword: torch.as_tensor(values[i])[None] for keyword, values in more.items()}
            self.metric_fn(one[None], truth[None], **given)

    def _from_batch(self, key: str) -> Any:
        batch = self._engine.state.batch if self._engine is not None else {}
        first = batch[0] if isinstance(batch, list) else batch
        if key not in first:
            held = sorted(str(name) for name in first)
            raise ValueError(f"{type(self.metric_fn).__name__} needs {key!r}; the batch holds {held}")
        return [item[key] for item in batch] if isinstance(batch, list) else batch[key]
