"""One search a task and network, by the same rules for all; every experiment takes the recipe it finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from math import inf

from benchmarks.experiments.arms import Arm, Recipe, Schedule
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.methods import METHODS
from benchmarks.experiments.objectives import OBJECTIVES
from benchmarks.experiments.runner import Runner
from benchmarks.experiments.sizes import Size

__all__ = ["NAME", "arm_of", "base", "recipe_of", "training_cohort"]

NAME = "recipes"
SEARCH_SEED = 1000  # of the trials; no arm has it
STEP = 10**0.5  # between learning rates where a search goes beyond its range
MOST_BEYOND = 3
LONGER = (
    3  # times the steps where heads are turned at random: every one of them is new, and takes longer to learn
)


def training_cohort(size: Size) -> Cohort:
    """The heads that every training from scratch learns from and validates on."""
    return size.cohort("training", 101, test=False)


def base(method: str) -> str:
    """The method whose recipe this one takes over: the same network on upright heads and harmonics alone."""
    return method.split(",")[0]


def arm_of(size: Size, experiment: str, task: str, method: str, recipe: Recipe | None = None) -> Arm:
    """The method trained from scratch on all heads, not tested yet."""
    labels = {"task": task, "method": method}
    network = METHODS[method].network
    times = LONGER if METHODS[method].rotated else 1
    return Arm(
        experiment, labels, 0, method, size.networks[network], task, recipe or Recipe(size.rates[0]),
        longer(size.schedule, times), training_cohort(size), size.learners, size.validators, precision=size.precision,
    )  # fmt: skip


def longer(schedule: Schedule, times: int) -> Schedule:
    """As many validations over `times` the steps."""
    return replace(schedule, steps=times * schedule.steps, every=times * schedule.every)


def recipe_of(runner: Runner, size: Size, task: str, method: str) -> Recipe:
    """The recipe that validates best: of learning rates and, in a thorough search, class weights and then variants.

    Every trial is a line, trained with a seed of its own and never tested.  One whose gradients are not finite is the
    worst.  While the best rate is the first or last of those tried, one more is tried beyond it, `MOST_BEYOND` times
    at most.
    """
    name = base(method)
    variants, weights = METHODS[name].variants, OBJECTIVES[task].weights
    start = Recipe(size.rates[0], weights[0], variants[0])
    if len(size.rates) == 1:
        return start
    arm = replace(arm_of(size, NAME, task, name), seed=SEARCH_SEED)

    def value(recipe: Recipe) -> float:
        trial = replace(arm, labels={**arm.labels, "trial": str(recipe)}, recipe=recipe)
        return float(runner.trial(trial).get("validation", -inf))

    rate = _best_rate(lambda rate: value(replace(start, rate=rate)), size.rates)
    best = replace(start, rate=rate)
    if not size.thorough:
        return best
    best = _best([best, *(replace(best, weight=weight) for weight in weights[1:])], value)
    return _best([best, *(replace(best, variant=variant) for variant in variants[1:])], value)


def _best_rate(value: Callable[[float], float], rates: tuple[float, ...]) -> float:
    tried = {rate: value(rate) for rate in rates}
    for _ in range(MOST_BEYOND):
        top = max(tried, key=lambda rate: tried[rate])
        if min(tried) < top < max(tried):
            break
        beyond = top * STEP if top == max(tried) else top / STEP
        beyond = float(f"{beyond:.2g}")
        tried[beyond] = value(beyond)
    return max(tried, key=lambda rate: tried[rate])


def _best(recipes: list[Recipe], value: Callable[[Recipe], float]) -> Recipe:
    values = {json.dumps(asdict(recipe)): value(recipe) for recipe in recipes}
    return max(recipes, key=lambda recipe: values[json.dumps(asdict(recipe))])
