"""Small arms and result lines for the tests of the experiments."""

from __future__ import annotations

import numpy as np

from benchmarks.experiments.arms import Arm, Budget
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.run import Runner

COHORT = Cohort("train", 5, 1, 16, 8.0, ((1000.0, 16),))
ARM = Arm("test", {"method": "plain"}, 0, COHORT, {"task": "tissue", "spacing_mm": [8.0] * 3}, Budget(4))


class Recorder(Runner):
    """A runner that trains nothing: every arm gets a line at once."""

    def _run(self, arm: Arm) -> dict:
        return {
            "key": arm.key,
            "labels": dict(arm.labels),
            "seed": arm.seed,
            "validation": arm.settings.get("learning_rate", 0.0),
            "wall_seconds": 0.0,
            "tests": {},
            "arm": arm.key,
        }


def line(seed=0, value=0.5, test="turned", column="average_precision", **labels) -> dict:
    tests = {test: {column: list(np.atleast_1d(value))}}
    return {"key": str(labels), "labels": labels, "seed": seed, "tests": tests}
