"""An arm: one training and its tests, described by values alone, so that it has a hash and runs once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from benchmarks.experiments.cohorts import Cohort

__all__ = ["Arm", "Budget", "Pretraining"]


@dataclass(frozen=True)
class Budget:
    """How long a network is trained: `amount` steps, or seconds of training on the machine at hand."""

    amount: float
    unit: Literal["steps", "seconds"] = "steps"

    def epochs(self, steps_per_epoch: int, seconds_per_epoch: float = 0.0) -> int:
        """Whole epochs that come nearest to the budget, one at least."""
        one = steps_per_epoch if self.unit == "steps" else seconds_per_epoch
        if one <= 0:
            raise ValueError(f"an epoch takes {one} {self.unit}, expected more than 0")
        return max(1, round(self.amount / one))


@dataclass(frozen=True)
class Pretraining:
    """What precedes the training: `settings` are keys of pretrain.json."""

    cohort: Cohort
    settings: Mapping[str, Any]
    budget: Budget


@dataclass(frozen=True)
class Arm:
    """settings: keys of train.json.  labels: what tables and figures group by; with `seed` they name the arm.

    train_subjects: how many of the cohort's training part learn (None: all); `seed` draws them and the parts, initial
    weights, crops and flips, so that arms of one seed are paired.  tests: cohorts of other heads.
    """

    experiment: str
    labels: Mapping[str, Any]
    seed: int
    cohort: Cohort
    settings: Mapping[str, Any]
    budget: Budget
    tests: tuple[Cohort, ...] = ()
    train_subjects: int | None = None
    pretraining: Pretraining | None = None
    validation_share: float = field(default=0.2)

    @property
    def key(self) -> str:
        """Hash of the arm's values; the order of keys does not matter.

        Not of the code and of the bundle's defaults: who changes these removes the lines that depend on them, and the
        cohorts in the working folder.
        """
        return digest(asdict(self))

    def searched(self, rate: float) -> Arm:
        """The trial of learning rate `rate`: validated, never tested."""
        labels = {**self.labels, "trial": rate}
        return replace(self, labels=labels, settings={**self.settings, "learning_rate": rate}, tests=())

    def with_settings(self, **settings: Any) -> Arm:
        """The arm with further keys of train.json."""
        return replace(self, settings={**self.settings, **settings})

    def with_seeds(self, count: int) -> list[Arm]:
        """The arm with the seeds 0 ... `count` - 1."""
        return [replace(self, seed=seed) for seed in range(count)]


def digest(content: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of `content` as JSON with sorted keys."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
