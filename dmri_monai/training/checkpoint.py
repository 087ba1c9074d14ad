"""Checkpoints that survive a kill at any moment, and resuming from them."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from dmri_monai.flags import flag
from dmri_monai.io.writing import replacing
from dmri_monai.training.parallel import is_main

__all__ = ["Checkpoint", "copy_with_weights", "load_pretrained", "load_weights"]

logger = logging.getLogger(__name__)
# settings of a model that say what its channels mean: weights made under others fit in shape only
SHAPE_SETTINGS = (
    "architecture",
    "size",
    "options",
    "b_max",
    "l_max",
    "missing",
    "order_scale",
    "n_directions",
)
UNREADABLE = (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError)  # of torch.load
HEAD_OPTIONS = ("deep_supervision",)  # options of a network that change nothing but its head

# ignite's and MONAI's savers remove the old file before they write the new one: a kill in between loses both


def save_atomically(content: Any, path: Path) -> None:
    """torch.save under a temporary name in the same folder, then rename; OSError when the disk is full."""
    with replacing(path) as (temporary,), temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch says hides the file's own error
            raise error.__context__ if isinstance(error.__context__, OSError) else error from error


class Checkpoint:
    """Ignite handler of a trainer: `last.pt` after every epoch, `model.pt` whenever validation is at its best.

    `last.pt` holds the state of `network`, of everything in `stateful` (optimizer, scheduler, early stopping ...), of
    the trainer and of the best metric; `model.pt` holds the network alone, the latest where there is no `evaluator`,
    and `model.json` the `settings` it was made with.  Attach it last, after validation, schedule and early stopping.

    resume: continue from `last.pt`; ValueError when there is none, and for other `settings`, data or batch sizes.
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
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings
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
        save_atomically(state, self.last)

    def save_network(self) -> None:
        """Write the network alone to `model.pt`, and its settings beside it."""
        if self.settings is not None:
            with replacing(settings_path(self.best)) as (temporary,):
                temporary.write_text(json.dumps(self.settings, indent=4) + "\n")
        save_atomically(self.network.state_dict(), self.best)

    def restore(self, engine: Engine) -> None:
        _check_settings(self.settings or {}, self.best, ("task", *SHAPE_SETTINGS))
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


def load_weights(
    network: nn.Module, path: str | Path, settings: Mapping[str, Any] | None = None
) -> nn.Module:
    """`network` with all the weights of checkpoint `path` (a state dict), which must fit exactly.

    settings: of the network at hand; where the checkpoint has its own beside it (`model.json`), those that give the
    channels their meaning must agree; other b-values of the shells are only warned of.  ValueError naming both sides.
    """
    source = _read(path)
    _check_settings(settings or {}, path, ("task", *SHAPE_SETTINGS))
    target = network.state_dict()
    _check_fit(network, target, source, path)
    unexpected = sorted(set(source) - set(target))
    if unexpected:
        raise ValueError(
            f"{path}: {len(unexpected)} parameters unknown to the network; first {unexpected[0]}"
        )
    network.load_state_dict(source)
    return network


def load_pretrained(
    network: nn.Module, path: str | Path | None, settings: Mapping[str, Any] | None = None
) -> nn.Module:
    """`network` with the weights of checkpoint `path` (a state dict) in everything but its `head`.

    Logs what was loaded, what is new, and what the checkpoint holds besides. None or "" leaves the network as it is.
    settings: as of :func:`load_weights`, but the task may differ. ValueError when the bodies differ, naming both
    sides.
    """
    if not path:
        return network
    source = _read(path)
    _check_settings(settings or {}, path, SHAPE_SETTINGS, but=HEAD_OPTIONS)
    target = network.state_dict()
    body = {name: value for name, value in target.items() if not name.startswith("head.")}
    _check_fit(network, body, source, path)
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
    network: nn.Module, path: str | Path | None, settings: Mapping[str, Any] | None = None
) -> nn.Module:
    """A copy of `network` with the weights of checkpoint `path`, as :func:`load_weights`; None: with its own."""
    copied = copy.deepcopy(network)
    return copied if path is None else load_weights(copied, path, settings)


def settings_path(path: str | Path) -> Path:
    """Where the settings of checkpoint `path` are: `model.json` for `model.pt`."""
    return Path(path).with_suffix(".json")


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _read(path: str | Path) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise ValueError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({type(error).__name__})") from error
    weights = content.get("network", content) if isinstance(content, dict) else {}
    if not weights or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds no state dict of tensors, nor one as its 'network'")
    return weights


def _check_settings(
    settings: Mapping[str, Any], path: str | Path, names: tuple[str, ...], but: tuple[str, ...] = ()
) -> None:
    """ValueError where one of `names` differs between `settings` and those beside the checkpoint, if there are any.

    but: options of the network that may differ.
    """
    record = settings_path(path)
    if not record.is_file():
        return
    theirs = _without(but, json.loads(record.read_text()))
    ours = _without(but, json.loads(json.dumps(dict(settings), default=str)))
    for name in names:
        if name in ours and name in theirs and ours[name] != theirs[name]:
            _refuse(path, name, theirs[name], ours[name])
    shells = [list(side.get("shells") or []) for side in (theirs, ours)]
    if all(shells) and len(shells[0]) != len(shells[1]):
        _refuse(path, "shells", *shells)
    if all(shells) and shells[0] != shells[1]:
        logger.warning("%s was made with shells %s, the configuration has %s", path, *shells)


def _without(names: tuple[str, ...], settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` without the options `names`."""
    options = {k: v for k, v in settings.get("options", {}).items() if k not in names}
    return {**settings, "options": options} if "options" in settings else settings


def _refuse(path: str | Path, name: str, theirs: Any, ours: Any) -> None:
    raise ValueError(f"{path} was made with {name} = {theirs!r}, the configuration says {ours!r}")


def _check_fit(
    network: nn.Module, target: dict[str, Tensor], source: dict[str, Tensor], path: str | Path
) -> None:
    misfits = [n for n, value in target.items() if n not in source or source[n].shape != value.shape]
    if misfits:
        name = misfits[0]
        theirs = tuple(source[name].shape) if name in source else "missing"
        parts = _listed(list(dict.fromkeys(n.split(".")[0] for n in source)))
        raise ValueError(
            f"{path} does not fit the {type(network).__name__} in {len(misfits)} of {len(target)} parameters; "
            f"first {name}: network {tuple(target[name].shape)}, checkpoint {theirs}; the checkpoint holds {parts}"
        )
