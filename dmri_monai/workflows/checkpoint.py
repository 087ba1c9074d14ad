"""Checkpoints that survive a kill at any moment, and resuming from them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from dmri_monai.io.writing import replacing
from dmri_monai.workflows.flags import flag

__all__ = ["Checkpoint", "load_pretrained", "load_weights"]

logger = logging.getLogger(__name__)

# ignite's and MONAI's savers remove the old file before they write the new one: a kill in between loses both


def save_atomically(content: Any, path: Path) -> None:
    """torch.save under a temporary name in the same folder, then rename."""
    with replacing(path) as (temporary,):
        torch.save(content, temporary)


class Checkpoint:
    """Ignite handler of a trainer: `last.pt` after every epoch, `model.pt` whenever validation is at its best.

    `last.pt` holds the state of `network`, of everything in `stateful` (optimizer, scheduler, early stopping ...), of
    the trainer and of the best metric; `model.pt` holds the network alone, the latest where there is no `evaluator`.
    Attach it last, after validation, schedule and early stopping.

    resume: continue from `last.pt`; ValueError when there is none.
    overwrite: start anew in a folder that already holds a `last.pt`; ValueError otherwise, because it would be lost.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: nn.Module,
        stateful: dict[str, Any],
        evaluator: Engine | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.last = Path(output_dir) / "last.pt"
        self.best = Path(output_dir) / "model.pt"
        self.network = network
        self.stateful = stateful
        self.evaluator = evaluator
        self.resume = resume = flag("resume", resume)
        overwrite = flag("overwrite", overwrite)
        if resume and not self.last.is_file():
            raise ValueError(f"resume: there is no checkpoint {self.last}")
        if not resume and not overwrite and self.last.is_file():
            raise ValueError(
                f"{self.last} exists: continue that training with `--resume true`, choose another `--output_dir`, "
                "or discard it with `--overwrite true`"
            )

    def attach(self, engine: Engine) -> None:
        if self.resume:
            engine.add_event_handler(Events.STARTED, self.restore)
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
        save_atomically(state, self.last)

    def save_network(self) -> None:
        """Write the network alone to `model.pt`."""
        save_atomically(self.network.state_dict(), self.best)

    def restore(self, engine: Engine) -> None:
        state = torch.load(self.last, map_location="cpu", weights_only=True)
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


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """`network` with all the weights of checkpoint `path` (a state dict), which must fit exactly."""
    source = _read(path)
    target = network.state_dict()
    _check_fit(target, source, path)
    unexpected = sorted(set(source) - set(target))
    if unexpected:
        raise ValueError(
            f"{path}: {len(unexpected)} parameters unknown to the network; first {unexpected[0]}"
        )
    network.load_state_dict(source)
    return network


def load_pretrained(network: nn.Module, path: str | Path | None) -> nn.Module:
    """`network` with the weights of checkpoint `path` (a state dict) in everything but its `head`.

    Logs what was loaded and what is new. None or "" leaves the network as it is. ValueError when the bodies differ,
    naming both sides.
    """
    if not path:
        return network
    source = _read(path)
    target = network.state_dict()
    body = {name: value for name, value in target.items() if not name.startswith("head.")}
    _check_fit(body, source, path)
    network.load_state_dict({name: source[name] for name in body}, strict=False)
    new = sorted(set(target) - set(body))
    logger.info(
        "pretrained: loaded %d parameters from %s; new: %s", len(body), path, ", ".join(new) or "none"
    )
    return network


def _read(path: str | Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise ValueError(f"there is no checkpoint {path}")
    content = torch.load(path, map_location="cpu", weights_only=True)
    return content.get("network", content)


def _check_fit(target: dict[str, Tensor], source: dict[str, Tensor], path: str | Path) -> None:
    misfits = [n for n, value in target.items() if n not in source or source[n].shape != value.shape]
    if misfits:
        name = misfits[0]
        theirs = tuple(source[name].shape) if name in source else "missing"
        raise ValueError(
            f"{path} does not fit the network in {len(misfits)} of {len(target)} parameters; "
            f"first {name}: network {tuple(target[name].shape)}, checkpoint {theirs}"
        )
