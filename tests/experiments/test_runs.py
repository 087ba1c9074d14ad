"""Whole arms at their smallest: they learn, resume, and every experiment runs and is drawn."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.experiments import generalisation, lesions, page, pretexts, pretraining
from benchmarks.experiments.arms import Pretraining, Recipe, Schedule
from benchmarks.experiments.fitting import train
from benchmarks.experiments.methods import build
from benchmarks.experiments.results import Results
from benchmarks.experiments.runner import Runner
from benchmarks.experiments.tables import flat, scores
from benchmarks.experiments.trivial import without_network
from dmri_monai.phantom import make_subject, shell_table, write_subject
from dmri_monai.transforms.random_rotation import random_rotation
from tests.experiments.examples import ARM, COHORT, TINY

EXPERIMENTS = {m.NAME: m for m in (lesions, pretraining, generalisation)}


@pytest.fixture
def runner(tmp_path) -> Runner:
    results = Results(tmp_path / "results.jsonl")
    return Runner(tmp_path, results, results)


def test_network_learns_tissue_of_other_heads(runner):
    arm = replace(
        ARM, schedule=Schedule(40, 10, 4), size={"filters": 4}, recipe=Recipe(0.01, 1.0, {"norm": "group"})
    )
    found, start = runner.line(arm), runner.line(replace(arm, schedule=Schedule(1, 1, 1)))
    assert found["validation"] > start["validation"] + 0.1
    assert scores([found], "turned", "dice").shape == (1, 2)
    assert [step for step, _, _ in found["curve"]] == [10, 20, 30, 40]


def test_arm_that_has_a_line_is_not_run_again(runner, monkeypatch):
    first = runner.line(ARM)
    monkeypatch.setattr(Runner, "_run", lambda self, arm: pytest.fail("ran again"))
    assert runner.line(ARM) == first


def test_seed_decides_heads_weights_and_order(tmp_path):
    """Not to the last bit: Adam's first steps take the sign of gradients that are nothing but rounding."""
    losses = []
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        results = Results(tmp_path / f"{name}.jsonl")
        line = Runner(tmp_path, results, results).line(replace(ARM, seed=seed))
        losses.append(line["curve"][0][1])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] != pytest.approx(losses[0], rel=1e-3)


def test_training_ends_when_patience_does_and_keeps_the_best_weights():
    network = torch.nn.Linear(1, 1)
    values = iter([0.5, 0.9, 0.8, 0.7, 0.6])
    seen = []

    def validate() -> float:
        seen.append(float(network.weight.detach()))
        return next(values)

    one = torch.ones(1)
    curve = train(network, lambda: [one], lambda batch: network(batch[0]).square().mean(), validate,
                  Schedule(100, 1, 2), 0.1)  # fmt: skip
    assert (curve.best, curve.step, len(curve.points)) == (0.9, 2, 4)
    assert float(network.weight.detach()) == seen[1]
    assert flat({"curve": curve.points})


@pytest.mark.parametrize(
    ("name", "least"),
    [("prevalence", 0.15), ("k-means", 0.4), ("regression", 0.6), ("forest", 0.6), ("thresholds", 0.5)],
)
def test_methods_without_a_network_find_tissue(runner, name, least):
    found = without_network(runner, replace(ARM, learners=3), name)
    assert np.nanmean(scores([found], "turned", "dice")) > least
    assert without_network(runner, replace(ARM, learners=3), name) == found


@pytest.mark.parametrize("name", ["deconvolution", "tensor"])
def test_classical_axes_are_those_of_the_turned_heads(runner, name):
    found = without_network(runner, replace(ARM, task="orientation"), name)
    control = without_network(runner, replace(ARM, task="orientation"), "prevalence")
    errors = [float(np.nanmean(scores([x], "turned", "angular_error_median_deg"))) for x in (found, control)]
    assert errors[0] < 30 < errors[1]


def test_method_without_an_answer_has_no_line(runner):
    assert without_network(runner, replace(ARM, task="orientation"), "k-means") is None
    assert runner.results.lines() == []


def test_body_is_pretrained_and_head_is_not(runner):
    step = next(a.pretraining for a in pretraining.arms(TINY, lambda *_: Recipe(0.01)) if a.pretraining)
    arm = replace(ARM, pretraining=replace(step, cohort=replace(COHORT, subjects=5, seed=9)))
    network = build("plain", "2x0e+1x2e+1x4e", "4x0e", arm.size)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pretexts.pretrained(runner, arm, network)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert "down_1.0.0.weight" in changed
    assert not any(name.startswith("head") for name in changed)
    (record,) = (runner.work / "pretrained").glob("*.json")
    assert json.loads(record.read_text(encoding="utf-8"))["curve"]


def test_real_scans_of_other_shells_are_pretrained_on(runner, tmp_path):
    """Oblique, with other voxels and another b-value than the heads to be labelled."""
    affine = torch.diag(torch.tensor([-6.0, 6.0, 7.0, 1.0], dtype=torch.float64))
    affine[:3, :3] = random_rotation(np.random.RandomState(3), 20.0).double() @ affine[:3, :3]
    affine[:3, 3] = -affine[:3, :3] @ torch.tensor([9.5, 10.5, 8.5], dtype=torch.float64)
    for number in range(4):
        table = shell_table(np.random.default_rng(number), {2000.0: 20}, 2)
        made = make_subject((7, number), shape=(20, 22, 18), affine=affine, scheme=table)
        write_subject(tmp_path / "real", f"sub-{number + 1:02d}", made)
    step = Pretraining("artifacts", "normal", "real", Schedule(2, 1, 2), 0.003, 8.0)
    real = replace(runner, real=tmp_path / "real")
    scans = pretexts._scans(real, step)
    assert {round(float(np.abs(np.linalg.det(scan.image.affine[:3, :3])))) for scan in scans} == {512}
    assert all(12 <= max(scan.brain.shape) <= 24 for scan in scans)
    network = build("plain", "2x0e+1x2e+1x4e", "4x0e", ARM.size)
    pretexts.pretrained(real, replace(ARM, pretraining=step), network)
    with pytest.raises(ValueError, match="needs --real"):
        pretexts.pretrained(runner, replace(ARM, seed=5, pretraining=step), network)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs_and_is_drawn(name, tmp_path):
    results = Results(tmp_path / "results" / "small" / f"{name}.jsonl")
    found = Results(tmp_path / "results" / "small" / "recipes.jsonl")
    EXPERIMENTS[name].run(Runner(tmp_path, results, found), TINY)
    page.write(tmp_path / "results")
    assert (
        results.path.with_name(f"{'methods' if name == 'generalisation' else name}.png").stat().st_size > 5000
    )
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "### Summary" in text
    assert "nan" not in text.lower()
