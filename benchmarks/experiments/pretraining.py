"""Pretraining on unlabelled heads, fine-tuning on few labelled ones of another, clinical protocol.

After Weninger et al. 2022 (BVM): other heads, SNR, voxel size and gradient table than those of the pretraining.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from benchmarks.experiments.arms import Arm, Pretraining, Recipe
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.recipes import arm_of, recipe_of
from benchmarks.experiments.runner import Runner
from benchmarks.experiments.sizes import Size
from benchmarks.experiments.trivial import TRIVIAL, without_network

__all__ = ["METHODS", "NAME", "TASKS", "arms", "run"]

NAME = "pretraining"
TASKS = ("tissue", "crossings", "orientation")
PRETEXTS = ("none", "autoencoder", "artifacts", "masked")
METHODS = ("equivariant", "plain", "any")
FEW = 2  # labelled heads with which all pretexts and presets are compared
RATE = 0.003  # of pretraining
RecipeOf = Callable[[str, str], Recipe]


def run(runner: Runner, size: Size) -> None:
    """All arms, those of the paper's question first."""
    for arm in arms(size, lambda *_: Recipe(1.0)):
        if arm.method == METHODS[0] and arm.labels["pretext"] == "none":
            for name in TRIVIAL:
                without_network(runner, arm, name)
    for arm in arms(size, lambda task, method: recipe_of(runner, size, task, method)):
        if not isinstance(arm.pretraining and arm.pretraining.cohort, str) or runner.real:
            runner.line(arm)


def hcp_cohort(size: Size) -> Cohort:
    """Unlabelled: smaller voxels, more directions, high SNR."""
    spacing, voxels = 0.8 * size.spacing_mm, round(size.voxels / 0.8)
    return size.cohort(
        "hcp-like", 301, test=False, size=voxels, spacing_mm=spacing,
        shells=tuple((b, size.hcp_directions) for b in size.hcp_shells), n_b0=6, snr=(20.0, 40.0),
    )  # fmt: skip


def clinical_cohorts(size: Size) -> tuple[Cohort, Cohort]:
    """To fine-tune on, and to test: few directions, low SNR."""
    protocol: dict[str, Any] = {"shells": ((1000.0, min(32, size.directions)),), "snr": (10.0, 18.0)}
    return size.cohort("clinical", 302, test=False, **protocol), size.cohort("test", 303, **protocol)


def arms(size: Size, recipe: RecipeOf) -> Iterator[Arm]:
    """Seed by seed; the numbers of labelled heads in the order of `size`."""
    for labelled in size.labelled:
        for seed in range(size.seeds):
            for method in METHODS:
                for task in TASKS:
                    for pretext, preset, where in _pretexts(size, labelled):
                        yield _arm(
                            size, method, task, labelled, pretext, preset, where, seed, recipe(task, method)
                        )


def _pretexts(size: Size, labelled: int) -> Iterator[tuple[str, str, str]]:
    """Pretext, preset and where: presets beside the first, and real scans, with few labelled heads alone."""
    for pretext in PRETEXTS:
        yield pretext, size.presets[0], "simulated"
    if labelled == FEW:
        for preset in size.presets[1:]:
            yield "artifacts", preset, "simulated"
        for pretext in ("autoencoder", "artifacts"):
            yield pretext, size.presets[0], "real"


def _arm(
    size: Size, method: str, task: str, labelled: int, pretext: str, preset: str, where: str, seed: int, recipe: Recipe
) -> Arm:  # fmt: skip
    train, test = clinical_cohorts(size)
    labels: dict[str, Any] = {"task": task, "method": method, "labelled": labelled, "pretext": pretext}
    step = None
    if pretext != "none":
        cohort = hcp_cohort(size) if where == "simulated" else where
        # as many voxels a head as simulated ones have, which are smaller where they are procedural
        spacing = size.spacing_mm / (0.7 if size.anatomy == "procedural" else 1.0)
        step = Pretraining(pretext, preset, cohort, size.pretraining, RATE, spacing)
        labels |= {"on": where} | ({"preset": preset} if pretext == "artifacts" else {})
    return replace(
        arm_of(size, NAME, task, method, recipe), labels=labels, seed=seed, schedule=size.tuning, cohort=train,
        learners=labelled, tests=(test,), pretraining=step,
    )  # fmt: skip
