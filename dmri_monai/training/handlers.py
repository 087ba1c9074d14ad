"""Small ignite handlers: progress, early stopping whose state can be saved, the end of a lost training, a picture."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import inf, isnan
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping as IgniteEarlyStopping
from ignite.handlers import ProgressBar
from monai.engines import Evaluator, IterationEvents

from dmri_monai.failures import scans_of
from dmri_monai.io.writing import replacing
from dmri_monai.parallel import is_main

__all__ = ["EarlyStopping", "Progress", "StopAtNonFinite", "ValidationPicture", "reuse_handler"]

logger = logging.getLogger(__name__)


class Progress:
    """tqdm bar over the iterations of every epoch, with the loss where there is one."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def attach(self, engine: Engine) -> None:
        if is_main():
            bar = ProgressBar(persist=True, mininterval=1.0, desc=self.kind, ncols=90)
            bar.attach(engine, output_transform=_loss)


def _loss(output: Any) -> dict[str, float]:
    first = output[0] if isinstance(output, list) else output
    return {"loss": float(first["loss"])} if "loss" in first else {}


class EarlyStopping:
    """Ignite's early stopping, attached to the trainer, on a metric of `evaluator`, with a state that can be saved.

    patience: validations without improvement before the trainer stops.  Attach it after the validation.  A training
    that was ended so has ended when its state is loaded, unless `patience` is larger now.
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
        self._ended = False

    def attach(self, engine: Engine) -> None:
        self._handler = IgniteEarlyStopping(self.patience, self._score, trainer=engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self._judge)

    def _judge(self, engine: Engine) -> None:
        handler = self._attached()
        handler(engine)
        self._ended = handler.counter >= self.patience

    def _score(self, engine: Engine) -> float:
        score = self.sign * float(self.evaluator.state.metrics[self.metric])
        return -inf if isnan(score) else score  # ignite takes NaN for an improvement

    def state_dict(self) -> dict[str, Any]:
        return {**self._attached().state_dict(), "ended": self._ended}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """While the trainer starts: where `state` is that of a training that has ended, no epoch follows."""
        handler = self._attached()
        handler.load_state_dict({name: value for name, value in state.items() if name != "ended"})
        enough = handler.counter >= self.patience
        self._ended = enough and bool(state.get("ended", True))  # which older files do not say
        if self._ended:
            logger.warning(
                "early stopping has ended this training after %d validations without improvement: nothing is left to "
                "train; a --patience of more than %d goes on",
                handler.counter,
                handler.counter,
            )
            handler.trainer.terminate()

    def _attached(self) -> IgniteEarlyStopping:
        if self._handler is None:
            raise RuntimeError("EarlyStopping: attach it to a trainer first")
        return self._handler


class StopAtNonFinite:
    """Ignite handler of a MONAI trainer: the first loss that is not finite ends the training, before it moves a weight.

    Raises FloatingPointError naming epoch, iteration, loss and the scans of the batch; of several processes all end,
    and each says whether it was its own batch.
    """

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        loss = engine.state.output["loss"].detach()
        finite = bool(loss.isfinite())
        others = int(idist.all_reduce(0 if finite else 1)) if idist.get_world_size() > 1 else 0
        if finite and not others:
            return
        value = (
            f"{float(loss):g}"
            if not finite
            else f"not finite in {others} of {idist.get_world_size()} processes"
        )
        scans = "" if finite else f" for {scans_of(engine.state.batch)}"
        raise FloatingPointError(
            f"the loss is {value} in epoch {engine.state.epoch}, iteration {engine.state.iteration}{scans}; nothing of "
            "this epoch was saved: check these scans, or lower the learning rate"
        )


def reuse_handler(handler: Any) -> Any:
    """`handler` itself.

    MONAI's property check wants every training handler written as an object with a `_target_`; this lets one handler
    stand in that list and be referred to from elsewhere.
    """
    return handler


class ValidationPicture:
    """Ignite handler of an evaluator: the middle axial slice of the last item: input, truth and prediction.

    Items of `engine.state.output`: `image`, `label`, `pred`, each (C, X, Y, Z); a label that is a mapping is shown by
    its `harmonics`.  shows: "classes" (one-hot or class numbers), "scores" (their first channel, 0 to 1),
    "directions" (peaks; red, green and blue for the parts along x, y and z), or None for the first channel, unchanged.
    Of classes, it also warns, once, where validations in a row find one alone in all their scans: :class:`OneClass`.
    """

    def __init__(self, path: str | Path, shows: str | None = None) -> None:
        if shows not in (None, "classes", "scores", "directions"):
            raise ValueError(f"shows is {shows!r}, expected None, 'classes', 'scores' or 'directions'")
        self.path = Path(path)
        self.shows = shows

    def attach(self, engine: Engine) -> None:
        if is_main():
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        if self.shows == "classes":  # in every process: each sees a part of the scans
            OneClass().attach(engine)

    def __call__(self, engine: Engine) -> None:
        from matplotlib.figure import Figure

        item = engine.state.output[-1]
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        truth, found = (_slice(item[key], self.shows) for key in ("label", "pred"))
        limits = self._limits(truth, found)
        titled = {"input": _slice(item["image"], None), "truth": truth, "prediction": found}
        for axes, (title, picture) in zip(figure.subplots(1, 3), titled.items(), strict=True):
            style = {"cmap": "gray"} if title == "input" else {"cmap": "viridis", **limits}
            axes.imshow(picture.transpose(0, 1), origin="lower", **style)
            axes.set_title(title)
            axes.axis("off")
        with replacing(self.path) as (temporary,):
            figure.savefig(temporary, format="png", dpi=110)

    def _limits(self, truth: torch.Tensor, found: torch.Tensor) -> dict[str, float]:
        """Of the colours, the same for both pictures where their values mean the same."""
        if self.shows == "classes":
            return {"vmin": 0, "vmax": max(1.0, float(truth.max()), float(found.max()))}
        return {"vmin": 0, "vmax": 1} if self.shows == "scores" else {}


class OneClass:
    """Ignite handler of an evaluator: warns, once, of a network that calls every voxel of all scans the same.

    It does so where the labels hold several classes and `in_a_row` validations agree; a network that has just begun
    often finds one class.  Items of `engine.state.output`: as of :class:`ValidationPicture`.
    """

    def __init__(self, in_a_row: int = 2) -> None:
        self.in_a_row = in_a_row
        self._found: set[int] = set()
        self._true: set[int] = set()
        self._agreed, self._told = 0, False

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._look)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._judge)

    def _begin(self, engine: Engine) -> None:
        self._found, self._true = set(), set()

    def _look(self, engine: Engine) -> None:
        for item in engine.state.output:
            self._found |= _classes(item["pred"])
            self._true |= _classes(item["label"])

    def _judge(self, engine: Engine) -> None:
        found, true = _of_all_processes(self._found), _of_all_processes(self._true)
        one = len(found) == 1 and len(true) > 1
        self._agreed = self._agreed + 1 if one else 0
        if self._agreed >= self.in_a_row and not self._told and is_main():
            self._told = True
            logger.warning(
                "every voxel of all validation scans is predicted as class %d, the labels hold %s: unless this changes "
                "soon, try another learning_rate or class weights in the loss, and look whether labels and scans lie "
                "on the same grid",
                *found,
                ", ".join(map(str, sorted(true))),
            )


def _of_all_processes(classes: set[int]) -> set[int]:
    words = idist.all_gather(" ".join(map(str, classes)))
    return {int(word) for text in ([words] if isinstance(words, str) else words) for word in text.split()}


def _classes(volume: torch.Tensor) -> set[int]:
    """Class numbers in a volume (C, X, Y, Z), one-hot or class numbers; what is ignored is none."""
    plain = torch.as_tensor(volume).as_subclass(torch.Tensor)
    numbers = plain.argmax(0) if len(plain) > 1 else plain[plain >= 0].round()
    return {int(number) for number in numbers.unique()}


def _slice(volume: Any, shows: str | None) -> torch.Tensor:
    """(X, Y), or (X, Y, 3) colours, of the middle of a volume (C, X, Y, Z)."""
    volume = volume["harmonics"] if isinstance(volume, Mapping) else volume
    middle = torch.as_tensor(volume).as_subclass(torch.Tensor)[..., volume.shape[-1] // 2].float().cpu()
    if shows == "directions":
        return middle[:3].movedim(0, -1).abs().nan_to_num(0.0).clamp(max=1)
    return middle.argmax(0) if shows == "classes" and len(middle) > 1 else middle[0]
