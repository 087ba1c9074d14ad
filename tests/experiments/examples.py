"""Small heads, arms and result lines for the tests of the experiments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.experiments.arms import Arm, Recipe, Schedule
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.sizes import SMALL

COHORT = Cohort("train", 5, 1, 16, 8.0, ((1000.0, 16),))
CLEAR = replace(COHORT, size=32, spacing_mm=4.2, shells=((1000.0, 32),), snr=(500.0, 500.0))
ARM = Arm(
    "test", {"method": "plain", "task": "tissue"}, 0, "plain", {"filters": 1}, "tissue", Recipe(0.01),
    Schedule(4, 2, 2), COHORT, 2, 2, (replace(COHORT, name="turned", seed=2, subjects=2, turned=True),),
    precision="float32",
)  # fmt: skip
TINY = replace(SMALL, schedule=Schedule(2, 1, 2), pretraining=Schedule(2, 1, 2), tuning=Schedule(2, 1, 2))


def line(seed=0, value=0.5, test="turned", column="average_precision", **labels) -> dict:
    """A result line with one test; value: of every head."""
    tests = {test: {column: list(np.atleast_1d(value))}}
    return {"key": f"{labels}{seed}", "labels": labels, "seed": seed, "tests": tests, "recipe": {}}
