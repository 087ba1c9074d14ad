"""Whole arms and experiments at their smallest."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest

from benchmarks.experiments import classical, generalisation, lesions, page, pretraining
from benchmarks.experiments.arms import Budget
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.results import Results
from benchmarks.experiments.run import Runner
from benchmarks.experiments.sizes import SMALL
from benchmarks.experiments.tables import scores
from tests.experiments.examples import ARM, COHORT

EXPERIMENTS = {m.NAME: m for m in (lesions, pretraining, generalisation, classical)}
TINY = dataclasses.replace(SMALL, steps=2, seconds=1.0, tune_steps=2, pretrain_steps=2)


@pytest.mark.slow
def test_arm_is_pretrained_trained_tested_and_skipped_afterwards(tmp_path):
    tests = (Cohort("turned", 2, 2, 16, 8.0, ((1000.0, 16),), turned=True),)
    settings = {"task": "tissue", "architecture": "plain", "network_options": {"filters": 1}, "masked": True}
    settings |= {"spacing_mm": [8.0] * 3, "crop_size": [16] * 3}
    step = dataclasses.replace(
        pretraining.pretraining_of(SMALL, "artifacts", "light"), cohort=COHORT, budget=Budget(4)
    )
    arm = dataclasses.replace(ARM, settings=settings, tests=tests, train_subjects=2, pretraining=step)
    runner = Runner(tmp_path, Results(tmp_path / "results.jsonl"))
    found = runner.line(arm)
    assert (found["steps"], found["epochs"]) == (4, 2)
    values = scores([found], "turned", "dice")
    assert values.shape == (1, 2)
    assert np.isfinite(values).all()
    again = dataclasses.replace(arm, budget=Budget(2.0, "seconds"), pretraining=None)
    timed = runner.line(again)
    assert timed["train_seconds"] == pytest.approx(2.0, abs=1.5)
    shutil.rmtree(tmp_path / "data")
    assert runner.line(arm) == found


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs_and_is_drawn(name, tmp_path):
    results = Results(tmp_path / "results" / "small" / f"{name}.jsonl")
    EXPERIMENTS[name].run(Runner(tmp_path, results), TINY)
    page.write(tmp_path / "results")
    assert results.path.with_suffix(".png").stat().st_size > 5000
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert f"### {page.TITLES[name]}" in text
    assert "nan" not in text.split(f"### {page.TITLES[name]}")[1].split("## Running")[0]


@pytest.mark.slow
def test_network_pretrained_on_three_shells_is_tuned_on_one(tmp_path):
    size = dataclasses.replace(TINY, hcp_shells=(1000.0, 2000.0, 3000.0), hcp_directions=16)
    assert [b for b, _ in pretraining.hcp_cohort(size).shells] == [1000.0, 2000.0, 3000.0]
    (arm,) = pretraining._seeds(size, "artifacts", "light", "plain", "tissue", 2)
    found = Runner(tmp_path, Results(tmp_path / "results.jsonl")).line(arm)
    assert np.isfinite(scores([found], "test", "dice")).all()
