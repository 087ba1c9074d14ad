"""Lesions against the number of training heads, upright and turned, and against the number of parameters.

After Müller et al. 2021 (arXiv:2102.06942), with rivals the paper lacks: MONAI's networks, and networks that learn from
turned heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from benchmarks.experiments.arms import Arm, Recipe
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.methods import METHODS
from benchmarks.experiments.recipes import arm_of, recipe_of
from benchmarks.experiments.runner import Runner
from benchmarks.experiments.sizes import Size
from benchmarks.experiments.trivial import TRIVIAL, without_network

__all__ = ["NAME", "arms", "run"]

NAME = "lesions"
WITHOUT = (*TRIVIAL, "forest")
RecipeOf = Callable[[str], Recipe]


def test_cohorts(size: Size) -> tuple[Cohort, Cohort]:
    """The same heads upright and turned."""
    return size.cohort("upright", 102), size.cohort("turned", 102, turned=True)


def run(runner: Runner, size: Size) -> None:
    """All arms, those of the first question before the others; methods without a network follow the first network."""
    for arm in arms(size, lambda method: recipe_of(runner, size, "lesion", method)):
        runner.line(arm)
        if arm.labels["study"] == "data" and arm.method == size.methods[0]:
            for name in WITHOUT:
                without_network(runner, arm, name)


def arms(size: Size, recipe: RecipeOf) -> Iterator[Arm]:
    """Every method at every number of training heads, in the order of `size`; then other widths on all heads."""
    pairs = [(fraction, method) for fraction in size.fractions for method in size.methods]
    # with few turned heads last: these take longest
    for fraction, method in sorted(pairs, key=lambda pair: METHODS[pair[1]].rotated and pair[0] < 1):
        for seed in range(size.seeds):
            heads = max(1, round(fraction * size.learners))
            labels = {"study": "data", "method": method, "heads": heads}
            yield replace(_arm(size, method, recipe), seed=seed, labels=labels, learners=heads)
    for seed in range(size.seeds):
        for number, (method, network) in enumerate(size.widths):
            labels = {"study": "parameters", "method": method, "width": number}
            yield replace(_arm(size, method, recipe), seed=seed, labels=labels, size=network)
    if size.precision == "float32":
        return
    for seed in range(size.seeds):
        for method in size.methods:
            labels = {"study": "float32", "method": method}
            yield replace(_arm(size, method, recipe), seed=seed, labels=labels, precision="float32")


def _arm(size: Size, method: str, recipe: RecipeOf) -> Arm:
    assert method in METHODS
    return replace(arm_of(size, NAME, "lesion", method, recipe(method)), tests=test_cohorts(size))
