"""Run arms: heads from the disk or newly simulated, a training, its tests, one line each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dmri_monai
from benchmarks.experiments.arms import Arm
from benchmarks.experiments.cases import Case, Scale, case_of
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.fitting import NotFinite, fit, predict
from benchmarks.experiments.methods import METHODS, build, parameters
from benchmarks.experiments.objectives import OBJECTIVES
from benchmarks.experiments.results import Results
from dmri_monai.inference import to_device
from dmri_monai.phantom import Subject

__all__ = ["Runner", "learners_of"]


@dataclass
class Runner:
    """Where heads, pretrained weights and results go, and where to compute."""

    work: Path
    results: Results
    recipes: Results
    device: str = "cpu"
    real: Path | None = None  # real scans, for pretraining
    _cases: dict[tuple[Any, ...], Case] = field(default_factory=dict)

    def run(self, arms: Iterable[Arm]) -> list[dict[str, Any]]:
        """The lines of `arms`; those that are not there yet are run and added."""
        return [self.line(arm) for arm in arms]

    def line(self, arm: Arm) -> dict[str, Any]:
        """The line of one arm, from the file or newly run."""
        return self.made_once(arm.key, lambda: self._run(arm))

    def made_once(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The line of `key`, from the file, or made and added."""
        known = self.results.get(key)
        if known is not None:
            return known
        start = time.perf_counter()
        content = make()
        versions = {"dmri_monai": dmri_monai.__version__, "torch": torch.__version__}
        line: dict[str, Any] = json.loads(  # as the file will give it back
            json.dumps(
                {
                    "key": key, **content, "wall_seconds": round(time.perf_counter() - start, 1),
                    "device": self.device, "threads": torch.get_num_threads(), "versions": versions,
                }
            )
        )  # fmt: skip
        self.results.add(line)
        means = {
            name: {k: round(float(np.nanmean(np.array(v, dtype=float))), 3) for k, v in columns.items()}
            for name, columns in line["tests"].items()
        }
        shown = {k: line[k] for k in ("labels", "seed", "validation", "wall_seconds") if k in line}
        print(json.dumps({**shown, "tests": means}), flush=True)
        return line

    def cases(self, cohort: Cohort, takes: str, task: str, numbers: Sequence[int]) -> list[Case]:
        """Those heads of a cohort, kept in memory."""
        found = []
        for number in numbers:
            key = cohort, takes, task, number
            if key not in self._cases:
                self._cases[key] = case_of(self.subject(cohort, number), takes, task).to(self.device)
            found.append(self._cases[key])
        return found

    def subject(self, cohort: Cohort, number: int) -> Subject:
        """Head `number` of a cohort, from the working folder or simulated and put there."""
        return cohort.stored(self.work / "heads", number)

    def trial(self, arm: Arm) -> dict[str, Any]:
        """The line of a trial, which stands among the recipes; no validation where gradients are not finite."""
        own = replace(self, results=self.recipes)

        def tried() -> dict[str, Any]:
            try:
                return own._run(arm)
            except NotFinite as error:
                labels = {"experiment": arm.experiment, "labels": dict(arm.labels), "seed": arm.seed}
                return {**labels, "recipe": asdict(arm.recipe), "failed": str(error), "tests": {}}

        return own.made_once(arm.key, tried)

    def _run(self, arm: Arm) -> dict[str, Any]:
        method, objective = METHODS[arm.method], OBJECTIVES[arm.task]
        numbers, validators = learners_of(arm)
        learners = self.cases(arm.cohort, method.takes, arm.task, numbers)
        scale = Scale.of(learners)
        torch.manual_seed(arm.seed)
        network = build(
            method.network, learners[0].irreps, objective.irreps_out, arm.size, **arm.recipe.variant
        )
        if arm.pretraining is not None:
            from benchmarks.experiments.pretexts import pretrained  # which needs runners itself

            pretrained(self, arm, network)
        network = to_device(network, self.device)
        validating = [scale(c) for c in self.cases(arm.cohort, method.takes, arm.task, validators)]
        curve = fit(network, [scale(c) for c in learners], validating, arm)
        offset = objective.offset(predict(network, validating, arm), [c.label[:, c.mask] for c in validating])
        tests = {cohort.name: self._test(arm, network, scale, cohort, offset) for cohort in arm.tests}
        return {
            "experiment": arm.experiment, "labels": dict(arm.labels), "seed": arm.seed, "method": arm.method,
            "task": arm.task, "precision": arm.precision, "recipe": asdict(arm.recipe), "size": dict(arm.size),
            "n_parameters": parameters(network), "learners": arm.learners, "validation": round(curve.best, 5),
            "best_step": curve.step, "skipped_steps": curve.skipped, "curve": curve.points,
            "schedule": asdict(arm.schedule), "train_seconds": round(curve.seconds, 1), "offset": offset,
            "tests": tests, "pretraining": arm.pretraining and asdict(arm.pretraining),
        }  # fmt: skip

    def _test(
        self, arm: Arm, network: nn.Module, scale: Scale, cohort: Cohort, offset: float
    ) -> dict[str, list[float | None]]:
        """Column of the scores -> values of the heads, in their order; None where undefined."""
        method, objective = METHODS[arm.method], OBJECTIVES[arm.task]
        cases = [scale(c) for c in self.cases(cohort, method.takes, arm.task, range(cohort.subjects))]
        rows = [
            objective.scores(objective.decide(pred + offset), case.label[:, case.mask])
            for case, pred in zip(cases, predict(network, cases, arm), strict=True)
        ]
        return columns_of(rows)


def columns_of(rows: Sequence[dict[str, float]]) -> dict[str, list[float | None]]:
    """Columns of the heads' rows; None for NaN."""
    return {k: [round(row[k], 5) if row[k] == row[k] else None for row in rows] for k in rows[0]}


def learners_of(arm: Arm) -> tuple[list[int], list[int]]:
    """Numbers of the heads that learn, as the seed draws them, and of those that validate."""
    kept = arm.cohort.subjects - arm.validators
    if arm.learners > kept:
        raise ValueError(f"{arm.learners} heads cannot learn from {kept}")
    order = np.random.RandomState(arm.seed).permutation(kept).tolist()
    return order[: arm.learners], list(range(kept, arm.cohort.subjects))
