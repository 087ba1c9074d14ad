"""Small ignite handlers: progress, early stopping whose state can be saved, and a picture of the last validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping as IgniteEarlyStopping
from ignite.handlers import ProgressBar
from monai.engines import Evaluator

from dmri_monai.io.writing import replacing

__all__ = ["EarlyStopping", "Progress", "ValidationPicture", "shared"]


class Progress:
    """tqdm bar over the iterations of every epoch, with the loss where there is one."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def attach(self, engine: Engine) -> None:
        bar = ProgressBar(persist=True, mininterval=1.0, desc=self.kind, ncols=90)
        bar.attach(engine, output_transform=_loss)


def _loss(output: Any) -> dict[str, float]:
    first = output[0] if isinstance(output, list) else output
    return {"loss": float(first["loss"])} if "loss" in first else {}


class EarlyStopping:
    """Ignite's early stopping, attached to the trainer, on a metric of `evaluator`, with a state that can be saved.

    patience: validations without improvement before the trainer stops.  Attach it after the validation.
    """

    def __init__(
        self, evaluator: Evaluator, metric: str, patience: int, interval: int = 1, sign: float = 1.0
    ) -> None:
        self.evaluator = evaluator
        self.metric = metric
        self.patience = patience
        self.interval = interval
        self.sign = sign
        self._handler: IgniteEarlyStopping | None = None

    def attach(self, engine: Engine) -> None:
        self._handler = IgniteEarlyStopping(self.patience, self._score, trainer=engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._handler)

    def _score(self, engine: Engine) -> float:
        return self.sign * float(self.evaluator.state.metrics[self.metric])

    def state_dict(self) -> dict[str, Any]:
        return dict(self._attached().state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._attached().load_state_dict(state)

    def _attached(self) -> IgniteEarlyStopping:
        if self._handler is None:
            raise RuntimeError("EarlyStopping: attach it to a trainer first")
        return self._handler


def shared(handler: Any) -> Any:
    """`handler` itself.

    MONAI's property check wants every training handler written as an object with a `_target_`; this lets one handler
    stand in that list and be referred to from elsewhere.
    """
    return handler


class ValidationPicture:
    """Ignite handler of an evaluator: the middle axial slice of the last item as input, truth and prediction.

    Items of `engine.state.output`: `image`, `label`, `pred`, each (C, X, Y, Z); class maps are one-hot, anything else
    is shown by its channel `channel`.
    """

    def __init__(self, path: str | Path, channel: int = 0) -> None:
        self.path = Path(path)
        self.channel = channel

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        from matplotlib.figure import Figure

        item = engine.state.output[-1]
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        for axes, key in zip(figure.subplots(1, 3), ("image", "label", "pred"), strict=True):
            axes.imshow(
                self._slice(item[key]).T, origin="lower", cmap="gray" if key == "image" else "viridis"
            )
            axes.set_title({"image": "input", "label": "truth", "pred": "prediction"}[key])
            axes.axis("off")
        with replacing(self.path) as (temporary,):
            figure.savefig(temporary, format="png", dpi=110)

    def _slice(self, volume: torch.Tensor) -> torch.Tensor:
        middle = torch.as_tensor(volume).as_subclass(torch.Tensor)[..., volume.shape[-1] // 2].float().cpu()
        one_hot = len(middle) > 1 and bool(((middle == 0) | (middle == 1)).all())
        return middle.argmax(0) if one_hot else middle[self.channel]
