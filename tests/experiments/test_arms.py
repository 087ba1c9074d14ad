"""What the experiments compare: fair arms, no head both in training and in a test, and one search for all."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks.experiments import generalisation, lesions, page, pretraining, recipes
from benchmarks.experiments.arms import Arm, Recipe
from benchmarks.experiments.fitting import NotFinite
from benchmarks.experiments.methods import METHODS, build
from benchmarks.experiments.objectives import OBJECTIVES
from benchmarks.experiments.recipes import recipe_of
from benchmarks.experiments.results import Results
from benchmarks.experiments.runner import Runner, learners_of
from benchmarks.experiments.sizes import CPU, SIZES, SMALL
from tests.experiments.examples import ARM

KNOWN = Recipe(0.01)
PLANS = {
    "lesions": lambda size: lesions.arms(size, lambda method: KNOWN),
    "pretraining": lambda size: pretraining.arms(size, lambda task, method: KNOWN),
    "generalisation": lambda size: generalisation.arms(size, lambda task, method: KNOWN),
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PLANS)
def test_arms_are_distinct_and_have_the_seeds_of_their_size(name, size):
    arms: list[Arm] = list(PLANS[name](SIZES[size]))
    assert len({arm.key for arm in arms}) == len(arms)
    seeds: dict[str, set[int]] = {}
    for arm in arms:
        seeds.setdefault(json.dumps(arm.labels), set()).add(arm.seed)
    assert {len(own) for own in seeds.values()} == {SIZES[size].seeds}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PLANS)
def test_no_head_is_in_training_and_in_a_test(name, size):
    for arm in PLANS[name](SIZES[size]):
        step = arm.pretraining
        seen = {arm.cohort.seed} | (
            {step.cohort.seed} if step and not isinstance(step.cohort, str) else set()
        )
        assert seen.isdisjoint(test.seed for test in arm.tests)
        assert set(learners_of(arm)[0]).isdisjoint(learners_of(arm)[1])


def test_fewer_heads_of_a_seed_are_among_more_and_no_seed_asks_for_too_many():
    few, many = (replace(ARM, learners=n) for n in (1, 3))
    assert set(learners_of(few)[0]) < set(learners_of(many)[0])
    with pytest.raises(ValueError, match="4 heads cannot learn from 3"):
        learners_of(replace(ARM, learners=4))


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"labels": {"method": "pq"}}, {"recipe": Recipe(0.02)}, {"learners": 1}, {"tests": ()},
     {"size": {"filters": 2}}, {"precision": "bfloat16"}, {"method": "plain, rotated"},
     {"pretraining": next(arm.pretraining for arm in PLANS["pretraining"](SMALL) if arm.pretraining)}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_key_changes_with_every_field(change):
    assert replace(ARM, **change).key != ARM.key


@pytest.mark.parametrize("size", ["cpu", "full"])
@pytest.mark.parametrize("method", ["plain", "SegResNet", "DynUNet"])
def test_every_norm_of_a_rival_is_in_its_network(method, size):
    counts = set()
    for variant in METHODS[method].variants:
        network = build(method, "2x0e+1x2e+1x4e", "1x0e", SIZES[size].networks[method], **variant)
        names = {type(module).__name__ for module in network.modules() if "Norm" in type(module).__name__}
        assert names == {
            {"instance": "InstanceNorm3d", "batch": "BatchNorm3d", "group": "GroupNorm"}[variant["norm"]]
        }
        counts.add(len(names))
    assert counts == {1}


@pytest.mark.parametrize("method", sorted({recipes.base(m) for m in METHODS} - {"pq", "any"}))
def test_networks_take_harmonics_and_give_the_tasks_channels(method):
    network = build(METHODS[method].network, "2x0e+1x2e+1x4e", "4x0e", CPU.networks[METHODS[method].network])
    assert network(torch.zeros(1, 16, 16, 16, 8)).shape == (1, 4, 16, 16, 8)


class Scripted(Runner):
    """A runner whose trials validate as a function of the recipe says."""

    def _run(self, arm: Arm) -> dict:
        value = VALUES[arm.labels["task"]](arm.recipe)
        labels = {"labels": dict(arm.labels), "seed": arm.seed, "tests": {}}
        return {**labels, "recipe": asdict(arm.recipe), "validation": value}


VALUES = {
    "tissue": lambda r: 0.01 * (r.weight == 3) + (r.variant.get("norm") == "group") - abs(r.rate - 0.003),
    "lesion": lambda recipe: recipe.rate,  # ever larger
    "crossings": lambda recipe: recipe.rate if recipe.rate <= max(CPU.rates) else diverged(),
}  # fmt: skip


def diverged() -> float:
    raise NotFinite("145 of 300 steps had a gradient that is not finite")


def trials_of(task: str, method: str, tmp_path) -> tuple[Recipe, list[dict]]:
    results = Results(tmp_path / "recipes.jsonl")
    size = replace(CPU, thorough=True)
    found = recipe_of(Scripted(tmp_path, results, results), size, task, method)
    return found, results.lines()


def test_search_takes_the_best_of_rates_weights_and_norms(tmp_path):
    found, lines = trials_of("tissue", "plain", tmp_path)
    assert found == Recipe(0.003, 3.0, {"norm": "group"})
    assert len(lines) == len(CPU.rates) + len(OBJECTIVES["tissue"].weights) - 1 + 2
    assert all(not line["tests"] for line in lines)


def test_search_goes_beyond_a_rate_at_the_end_of_its_range(tmp_path):
    found, lines = trials_of("lesion", "plain", tmp_path)
    assert found.rate > max(CPU.rates)
    assert len({line["recipe"]["rate"] for line in lines}) == len(CPU.rates) + recipes.MOST_BEYOND


def test_rate_with_gradients_that_are_not_finite_is_the_worst_and_ends_the_search(tmp_path):
    found, lines = trials_of("crossings", "plain", tmp_path)
    assert found.rate == max(CPU.rates)
    (failed,) = (line for line in lines if "validation" not in line)
    assert failed["recipe"]["rate"] > max(CPU.rates)
    assert "145 of 300 steps" in failed["failed"]
    assert trials_of("crossings", "plain", tmp_path) == (found, lines)
    rows = page._recipes(CPU, {"recipes": lines})
    assert "not finite" in rows


def test_method_that_learns_from_turned_heads_takes_over_the_recipe(tmp_path):
    found, lines = trials_of("tissue", "plain", tmp_path)
    again, more = trials_of("tissue", "plain, rotated", tmp_path)
    assert (again, len(more)) == (found, len(lines))


def test_every_method_of_a_task_has_the_same_learning_rates(tmp_path):
    for method in ("plain", "DynUNet", "equivariant"):
        trials_of("tissue", method, tmp_path)
    lines = Results(tmp_path / "recipes.jsonl").lines()
    rates = {
        m: {line["recipe"]["rate"] for line in lines if line["labels"]["method"] == m}
        for m in ("plain", "DynUNet", "equivariant")
    }
    assert rates["plain"] == rates["DynUNet"] == rates["equivariant"] == set(CPU.rates)
