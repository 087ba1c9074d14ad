"""Results that resume: an arm has one line, and a line is never lost."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.experiments import pretraining
from benchmarks.experiments.arms import Budget
from benchmarks.experiments.results import Results
from benchmarks.experiments.sizes import SMALL
from benchmarks.experiments.tables import choose
from tests.experiments.examples import ARM, COHORT, Recorder


@pytest.fixture
def recorder(tmp_path) -> Recorder:
    return Recorder(tmp_path, Results(tmp_path / "results.jsonl"))


def test_key_does_not_depend_on_the_order_of_settings():
    turned_around = dict(reversed(ARM.settings.items()))
    assert dataclasses.replace(ARM, settings=turned_around).key == ARM.key


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"labels": {"method": "pq"}},
        {"settings": {"task": "lesion"}},
        {"budget": Budget(4, "seconds")},
        {"cohort": dataclasses.replace(COHORT, turned=True)},
        {"tests": (COHORT,)},
        {"train_subjects": 2},
        {"pretraining": pretraining.pretraining_of(SMALL, "masked", "all")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_key_changes_with_every_field(change):
    assert dataclasses.replace(ARM, **change).key != ARM.key


def test_arm_that_has_a_line_is_not_run_again(recorder, monkeypatch):
    first = recorder.line(ARM)
    monkeypatch.setattr(Recorder, "_run", lambda self, arm: pytest.fail("ran again"))
    assert recorder.line(ARM) == first


def test_interrupted_runs_go_on_with_the_arms_that_are_left(recorder, monkeypatch):
    arms, run = ARM.with_seeds(4), Recorder._run

    def breaks(self, arm):
        if arm.seed == 2:
            raise KeyboardInterrupt
        return run(self, arm)

    monkeypatch.setattr(Recorder, "_run", breaks)
    with pytest.raises(KeyboardInterrupt):
        recorder.run(arms)
    done = [one["seed"] for one in recorder.results.lines()]
    monkeypatch.setattr(Recorder, "_run", run)
    recorder.run(arms)
    assert (done, [one["seed"] for one in recorder.results.lines()]) == ([0, 1], [0, 1, 2, 3])


def test_line_that_cannot_be_written_leaves_the_others(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.add({"key": "a"})
    with pytest.raises(TypeError, match="not JSON serializable"):
        results.add({"key": "b", "value": object()})
    assert results.lines() == [{"key": "a"}]


@pytest.mark.parametrize("text", ["{broken", '{"seed": 0}'], ids=["no JSON", "no key"])
def test_bad_line_is_named(tmp_path, text):
    path = tmp_path / "results.jsonl"
    path.write_text('{"key": "a"}\n' + text + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2 .*results\.jsonl"):
        Results(path).lines()


def test_trials_choose_the_best_validation_and_test_nothing(recorder):
    chosen = recorder.tuned(ARM, (0.1, 0.3, 0.2))
    trials = recorder.results.lines()
    assert chosen.settings["learning_rate"] == 0.3
    assert [one["labels"]["trial"] for one in trials] == [0.1, 0.3, 0.2]
    assert choose(trials) == []


def test_trials_choose_the_smallest_angle(recorder):
    arm = ARM.with_settings(task="orientation")
    assert recorder.tuned(arm, (0.3, 0.1)).settings["learning_rate"] == 0.1


@pytest.mark.parametrize(
    ("budget", "epochs"),
    [(Budget(120), 12), (Budget(3), 1), (Budget(9.0, "seconds"), 6)],
    ids=["steps", "less than an epoch", "seconds"],
)
def test_budget_gives_whole_epochs(budget, epochs):
    assert budget.epochs(10, seconds_per_epoch=1.5) == epochs
