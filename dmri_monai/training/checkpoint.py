"""Checkpoints that survive a kill at any moment, and resuming from them."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from dmri_monai.flags import NO_PATH, flag
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.weights import (
    SHAPE_SETTINGS,
    check_fit,
    check_same_model,
    load_weights,
    read_weights,
    read_whole,
    save_model,
    save_whole,
)
from dmri_monai.io.present import present
from dmri_monai.parallel import is_main

__all__ = ["Checkpoint", "copy_with_weights", "load_pretrained"]

logger = logging.getLogger(__name__)
HEAD_OPTIONS = ("deep_supervision",)  # options of a network that change nothing but its head


class Checkpoint:
    """Ignite handler of a trainer: `last.pt` after every epoch, `model.pt` whenever validation is at its best.

    `last.pt` holds the state of `network`, of everything in `stateful` (optimizer, scheduler, early stopping ...), of
    the trainer and of the best metric; `model.pt` holds the network alone, the latest where there is no `evaluator`,
    and `model.json` its `spec`.  Attach it last, after validation, schedule and early stopping.

    resume: continue from `last.pt`; ValueError when there is none, and for another model, data or batch sizes.
    overwrite: start anew in a folder that already holds a `last.pt`; ValueError otherwise, because it would be lost.
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
    ) -> None:
        self.spec = spec
        self.last = Path(output_dir) / "last.pt"
        self.best = Path(output_dir) / "model.pt"
        self.network = network
        self.stateful = stateful
        self.evaluator = evaluator
        self.resume = resume = flag("resume", resume)
        overwrite = flag("overwrite", overwrite)
        if resume and present(self.last) is None:
            raise ValueError(f"resume: there is no checkpoint {self.last}")
        if not resume and not overwrite and present(self.last):
            raise ValueError(
                f"{self.last} exists: continue that training with `--resume true`, choose another `--output_dir`, "
                "or discard it with `--overwrite true`"
            )

    def attach(self, engine: Engine) -> None:
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.restore)
        if is_main():
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def save(self, engine: Engine) -> None:
        state = {name: part.state_dict() for name, part in self.stateful.items()}
        state["network"] = self.network.state_dict()
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

    def restore(self, engine: Engine) -> None:
        check_same_model(self.spec, self.best, ("task", *SHAPE_SETTINGS))
        state = read_whole(self.last)
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


def load_pretrained(network: nn.Module, path: str | Path | None, spec: ModelSpec | None = None) -> nn.Module:
    """`network` with the weights of checkpoint `path` (a state dict) in everything but its `head`.

    Logs what was loaded, what is new, and what the checkpoint holds besides.  None, or the words null and none of a
    command line, leave the network as it is.  spec: as of :func:`load_weights`, but the task may differ.  ValueError
    when the bodies differ, naming both sides.
    """
    if path is None or str(path).lower() in NO_PATH:
        return network
    source = read_weights(path)
    check_same_model(spec, path, SHAPE_SETTINGS, but=HEAD_OPTIONS)
    target = network.state_dict()
    body = {name: value for name, value in target.items() if not name.startswith("head.")}
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
    """A copy of `network` with the weights of checkpoint `path`, as :func:`load_weights`; None: with its own."""
    copied = copy.deepcopy(network)
    return copied if path is None else load_weights(copied, path, spec)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
