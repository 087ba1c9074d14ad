"""Learning rates that fall along a cosine or differ between layers, and a body that is frozen at first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ignite.engine import Engine, Events
from monai.optimizers import generate_param_groups
from torch import nn

__all__ = ["FreezeBody", "cosine", "parameter_groups"]


def cosine(max_epochs: int) -> Callable[[int], float]:
    """Factor of the learning rate by epoch, for LambdaLR: from 1 down to 0 after `max_epochs`, without restarts.

    MONAI's WarmupCosineSchedule has the same rates, but saves its length: a training resumed with more epochs would
    keep the old one.  LambdaLR does not save functions, so the length is always that of the current training.
    Reference: Loshchilov and Hutter 2017, arXiv:1608.03983
    """

    def factor(epoch: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(epoch / max_epochs, 1.0)))

    return factor


def parameter_groups(
    network: nn.Module, learning_rates: Mapping[str, float] | None = None
) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
    """Parameters for an optimizer: those whose name begins with a key of `learning_rates` get its rate.

    Others keep the optimizer's own rate.  A parameter belongs to the longest key that fits, e.g. {"": 1e-4,
    "head.": 1e-3}.  ValueError for a key that fits none, naming the network's parts.
    """
    if not learning_rates:
        return network.parameters()
    owner = {name: _longest(name, learning_rates) for name, _ in network.named_parameters()}
    unused = sorted(set(learning_rates) - set(owner.values()))
    if unused:
        parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in owner))
        raise ValueError(f"learning_rates: no parameter begins with {unused[0]!r}; the network has {parts}")
    groups: list[dict[str, Any]] = generate_param_groups(
        network,
        layer_matches=[lambda named, key=key: owner[named[0]] == key for key in learning_rates],
        match_types=["filter"] * len(learning_rates),
        lr_values=list(learning_rates.values()),
    )
    groups = [{**group, "params": list(group["params"])} for group in groups]
    return [group for group in groups if group["params"]]


def _longest(name: str, keys: Iterable[str]) -> str | None:
    return max((key for key in keys if name.startswith(key)), key=len, default=None)


class FreezeBody:
    """Ignite handler of a trainer: in the first `epochs` epochs only parameters called `head.*` are trained.

    It depends on the epoch alone, so that a resumed training continues as if it had not been interrupted.
    """

    def __init__(self, network: nn.Module, epochs: int = 0) -> None:
        if epochs < 0:
            raise ValueError(f"frozen_epochs is {epochs}, expected at least 0")
        self.network, self.epochs = network, epochs

    def attach(self, engine: Engine) -> None:
        if self.epochs:
            engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        frozen = engine.state.epoch <= self.epochs
        for name, parameter in self.network.named_parameters():
            if not name.startswith("head."):
                parameter.requires_grad_(not frozen)
