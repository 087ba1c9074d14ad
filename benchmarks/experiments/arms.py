"""An arm: one training and its tests, described by values alone, so that it has a hash and runs once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.methods import METHODS

__all__ = ["Arm", "Pretraining", "Recipe", "Schedule", "digest"]


@dataclass(frozen=True)
class Schedule:
    """At most `steps` of `batch` heads, validated every `every`; ends `patience` validations after the best one."""

    steps: int
    every: int
    patience: int
    batch: int = 1


@dataclass(frozen=True)
class Recipe:
    """rate: highest learning rate of the cycle.  weight: of rare classes in the loss.  variant: settings of `build`."""

    rate: float
    weight: float = 1.0
    variant: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        more = "".join(f", {value}" for value in self.variant.values())
        return f"{self.rate:g}, weight {self.weight:g}{more}"


@dataclass(frozen=True)
class Pretraining:
    """What precedes a training: `pretext` and, for artifacts, its `preset`, on the unlabelled heads of `cohort`.

    cohort: a cohort of simulated heads, or "real" for scans of people, brought to cubic voxels of `spacing_mm`.
    """

    pretext: str
    preset: str
    cohort: Cohort | str
    schedule: Schedule
    rate: float
    spacing_mm: float = 2.5


@dataclass(frozen=True)
class Arm:
    """labels: what tables and figures group by; with `seed` they name the arm.

    method: a key of `METHODS`; size: arguments of its network.  learners: how many heads of `cohort` learn, of those
    that are not among its last `validators`; `seed` draws them, the initial weights and the order, so that arms of one
    seed are paired.  tests: cohorts of other heads; none for a trial of the recipe search.  precision: of the network's
    arithmetic, "bfloat16" (autocast) or "float32".
    """

    experiment: str
    labels: Mapping[str, Any]
    seed: int
    method: str
    size: Mapping[str, Any]
    task: str
    recipe: Recipe
    schedule: Schedule
    cohort: Cohort
    learners: int
    validators: int
    tests: tuple[Cohort, ...] = ()
    pretraining: Pretraining | None = None
    precision: str = "bfloat16"

    @property
    def key(self) -> str:
        """Hash of the arm's values; the order of keys does not matter.

        Not of the code: who changes it removes the lines that depend on it.  The usual precision is left out.
        """
        content = asdict(self)
        if self.precision == "bfloat16":
            content.pop("precision")
        return digest([content, asdict(METHODS[self.method])])

    def seeds(self, count: int) -> list[Arm]:
        """The arm with the seeds 0 ... `count` - 1."""
        return [replace(self, seed=seed) for seed in range(count)]


def digest(content: Any) -> str:
    """16 hexadecimal digits of the SHA-256 of `content` as JSON with sorted keys."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
