"""Checkpoints that survive a kill at any moment, and resuming from them."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from dmri_monai.failures import on_failure
from dmri_monai.flags import NO_PATH, flag
from dmri_monai.inference.spec import ModelSpec, spec_path
from dmri_monai.inference.training_range import TrainingRange
from dmri_monai.inference.weights import (
    check_finite,
    check_fit,
    check_same_model,
    digest_of,
    load_weights,
    read_weights,
    read_whole,
    save_model,
    save_whole,
)
from dmri_monai.io.locking import FolderLock, locked
from dmri_monai.io.present import present
from dmri_monai.parallel import is_main
from dmri_monai.training.continuation import Record, check_same_inputs
from dmri_monai.training.scan_range import training_range

__all__ = ["Checkpoint", "copy_with_weights", "load_pretrained"]

logger = logging.getLogger(__name__)
# options of a network that change nothing but its head, or only what is made of its answers
HEAD_OPTIONS = ("deep_supervision", "own_statistics", "outside", "neighbours")


class Checkpoint:
    """Ignite handler of a trainer: `last.pt` after every epoch, `model.pt` whenever validation is at its best.

    `last.pt` holds the state of `network`, of everything in `stateful` (optimizer, scheduler, early stopping ...), of
    the trainer and of the best metric; `model.pt` holds the network alone, the latest where there is no `evaluator`,
    and `model.json` its `spec`; one without `trained_on` gets the range of the scans of the trainer's data set, as of
    :func:`training_range`.  Attach it last, after validation, schedule and early stopping.

    resume: continue from `last.pt`; ValueError when there is none, when it is damaged, and for another model or other
    `inputs` (of :func:`inputs_of`), of which it holds a record.
    overwrite: start anew in a folder that already holds a `last.pt`; ValueError otherwise, because it would be lost.
    While the trainer runs, the folder is locked: BlockingIOError names another training in it.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: nn.Module,
        stateful: dict[str, Any],
        spec: ModelSpec,
        evaluator: Engine | None = None,
        resume: bool = False,
        overwrite: bool = False,
        inputs: Record | None = None,
    ) -> None:
        self.spec = spec
        self.last = Path(output_dir) / "last.pt"
        self.best = Path(output_dir) / "model.pt"
        self.network = network
        self.stateful = stateful
        self.evaluator = evaluator
        self.inputs = inputs
        self.resume = flag("resume", resume)
        self.overwrite = flag("overwrite", overwrite)
        self._lock = FolderLock(Path(output_dir), "a training")
        self._check_folder()

    def _check_folder(self) -> None:
        if self.resume and present(self.last) is None:
            raise ValueError(f"resume: there is no checkpoint {self.last}")
        if not self.resume and not self.overwrite and present(self.last):
            raise ValueError(
                f"{self.last} exists: continue that training with `--resume true`, choose another `--output_dir`, "
                "or discard it with `--overwrite true`"
            )

    def attach(self, engine: Engine) -> None:
        if is_main():
            engine.add_event_handler(Events.STARTED, self._begin)
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.restore)
        if is_main():
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
            engine.add_event_handler(Events.COMPLETED, self._end)
            on_failure(engine, self._end)

    def _begin(self, engine: Engine) -> None:
        self._lock.acquire()
        self._check_folder()  # another training may have ended since
        if self.spec.trained_on == TrainingRange():
            dataset = getattr(engine.state.dataloader, "dataset", None)
            self.spec = self.spec.replace(trained_on=training_range(dataset, self.spec))

    def _end(self, *_: Any) -> None:
        self._lock.release()

    def save(self, engine: Engine) -> None:
        state = {name: part.state_dict() for name, part in self.stateful.items()}
        state["network"] = self.network.state_dict()
        check_finite(state["network"], f"epoch {engine.state.epoch} is not saved to {self.last}")
        if self.inputs is not None:
            state["inputs"] = self.inputs
        state["trainer"] = {"epoch": engine.state.epoch, "epoch_length": engine.state.epoch_length}
        if self.evaluator is not None:
            best = self.evaluator.state
            state["best"] = {"metric": float(best.best_metric), "epoch": int(best.best_metric_epoch)}
        # model.pt first: after a kill between the two, the repeated epoch writes the same model again
        if self.evaluator is None or self.evaluator.state.best_metric_epoch in (-1, engine.state.epoch):
            self.save_network()
        save_whole(state, self.last)

    def save_network(self) -> None:
        """Write the network alone to `model.pt`, and its description beside it."""
        save_model(self.network, self.best, self.spec)

    def save_alone(self) -> None:
        """:meth:`save_network` of a network that is not trained."""
        with locked(self.last.parent, "a training"):
            self._check_folder()
            self.save_network()

    def restore(self, engine: Engine) -> None:
        state = self._read_last()
        self._check_description()
        if self.inputs is not None and "inputs" in state:
            check_same_inputs(state["inputs"], self.inputs, self.last)
        elif self.inputs is not None:
            logger.warning("%s does not say with which settings and scans it was trained", self.last)
        length = state["trainer"]["epoch_length"]
        if length != engine.state.epoch_length:
            raise ValueError(
                f"resume: an epoch of {self.last} has {length} iterations, now {engine.state.epoch_length}: "
                "the data or the batch size changed"
            )
        self.network.load_state_dict(state["network"])
        for name, part in self.stateful.items():
            part.load_state_dict(state[name])
        engine.state.epoch = state["trainer"]["epoch"]
        engine.state.iteration = engine.state.epoch * length
        if self.evaluator is not None:
            self.evaluator.state.best_metric = state["best"]["metric"]
            self.evaluator.state.best_metric_epoch = state["best"]["epoch"]
        logger.info("resumed from %s after epoch %d", self.last, engine.state.epoch)

    def _read_last(self) -> dict[str, Any]:
        """The content of `last.pt`; ValueError saying how to go on where it is damaged or another program's."""
        kept = (
            f"; the weights in {self.best} are not affected: copy them first" if self.best.is_file() else ""
        )
        advice = f"this training cannot be continued; begin anew with `--overwrite true`{kept}"
        try:
            state = read_whole(self.last)
        except ValueError as error:
            raise ValueError(f"resume: {error}; {advice}") from None
        expected = ["network", "trainer", *self.stateful, *(["best"] if self.evaluator is not None else [])]
        missing = [name for name in expected if not isinstance(state, dict) or name not in state]
        if missing:
            raise ValueError(
                f"resume: {self.last} has no {missing[0]!r}, it is not of such a training; {advice}"
            )
        check_finite(state["network"], f"{self.last}; {advice}")
        return state  # type: ignore[no-any-return]

    def _check_description(self) -> None:
        """The model in `model.json` must be this one; where the file is missing it is written anew."""
        record = spec_path(self.best)
        if self.best.is_file() and not record.is_file() and is_main():
            read_weights(self.best)
            self.spec.replace(sha256=digest_of(self.best)).save(record)
            logger.warning("resume: %s was missing and is written anew", record)
        try:
            _ = ModelSpec.load(record) if record.is_file() else None
        except ValueError as error:
            raise ValueError(
                f"resume: {error}; delete {record}, it is written anew at the next start"
            ) from None
        check_same_model(self.spec, self.best, ("task", *ModelSpec.meaning()))


def load_pretrained(network: nn.Module, path: str | Path | None, spec: ModelSpec | None = None) -> nn.Module:
    """`network` with the weights of checkpoint `path` (a state dict) in everything but its `head`, and but for
    `neighbours`, which only networks of densities have, where the checkpoint has none.

    Logs what was loaded, what is new, and what the checkpoint holds besides.  None, or the words null and none of a
    command line, leave the network as it is.  spec: as of :func:`load_weights`, but the task may differ.  ValueError
    when the bodies differ, naming both sides.
    """
    if path is None or str(path).lower() in NO_PATH:
        return network
    source = read_weights(path)
    check_same_model(spec, path, ModelSpec.meaning(), but=HEAD_OPTIONS)
    target = network.state_dict()
    body = {
        name: value
        for name, value in target.items()
        if not name.startswith("head.") and (name in source or not name.startswith("neighbours."))
    }
    check_fit(network, body, source, path)
    network.load_state_dict({name: source[name] for name in body}, strict=False)
    logger.info(
        "pretrained: loaded %d parameters from %s (%s); new: %s; left in the checkpoint: %s",
        len(body),
        path,
        _listed(sorted({name.split(".")[0] for name in body})),
        _listed(sorted(set(target) - set(body))),
        _listed(sorted(set(source) - set(body))),
    )
    return network


def copy_with_weights(
    network: nn.Module, path: str | Path | None, spec: ModelSpec | None = None
) -> nn.Module:
    """A copy of `network` with the weights of checkpoint `path`, as :func:`load_weights`; None, "none": its own."""
    copied = copy.deepcopy(network)
    if path is None or str(path).lower() in NO_PATH:
        return copied
    return load_weights(copied, path, spec)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
