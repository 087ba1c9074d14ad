"""Trained on one protocol, tested on others, beside classical methods: directions, b-values, shells, SNR, artifacts.

The test heads are the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from benchmarks.experiments.arms import Arm, Recipe
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.recipes import arm_of, recipe_of
from benchmarks.experiments.runner import Runner
from benchmarks.experiments.sizes import Size
from benchmarks.experiments.trivial import CLASSICAL, TRIVIAL, without_network

__all__ = ["NAME", "TASKS", "arms", "protocols", "run"]

NAME = "generalisation"
TASKS = ("tissue", "crossings", "orientation")
RecipeOf = Callable[[str, str], Recipe]


def run(runner: Runner, size: Size) -> None:
    """Methods without a network once, networks seed by seed."""
    seen = set()
    for arm in arms(size, lambda *_: Recipe(1.0)):
        if arm.task not in seen:
            seen.add(arm.task)
            for name in (*TRIVIAL, *CLASSICAL):
                without_network(runner, arm, name)
    runner.run(arms(size, lambda task, method: recipe_of(runner, size, task, method)))


def arms(size: Size, recipe: RecipeOf) -> Iterator[Arm]:
    """Every method and seed: tissue on all protocols, the other tasks on that of the training."""
    for task in TASKS:
        for seed in range(size.seeds):
            for method in dict.fromkeys((*size.methods, "any")):
                tests = protocols(size) if task == "tissue" else protocols(size)[:1]
                yield replace(arm_of(size, NAME, task, method, recipe(task, method)), seed=seed, tests=tests)


def protocols(size: Size) -> tuple[Cohort, ...]:
    """The protocol of the training, then what differs from it in one point; voxels by a factor of 1.25."""
    n = size.directions
    changes: dict[str, dict[str, Any]] = {
        "as trained": {},
        "20 directions": {"shells": ((1000.0, 20),)},
        "12 directions": {"shells": ((1000.0, 12),)},
        "b = 750": {"shells": ((750.0, n),)},
        "b = 1300": {"shells": ((1300.0, n),)},
        "3 shells": {"shells": ((1000.0, n), (2000.0, n), (3000.0, n))},
        "SNR 8": {"snr": (8.0, 8.0)},
        "SNR 40": {"snr": (40.0, 40.0)},
        "smaller voxels": {"spacing_mm": 0.8 * size.spacing_mm, "size": round(1.25 * size.voxels)},
        "larger voxels": {"spacing_mm": 1.25 * size.spacing_mm, "size": round(0.8 * size.voxels)},
        **{f"artifacts {p}": {"artifacts": p} for p in ("light", "normal", "strong")},
        "turned heads": {"turned": True},
    }
    return tuple(size.cohort(name, 402, **change) for name, change in changes.items())
