"""What the experiments compare: fair arms, and no head both in training and in a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.experiments import classical, generalisation, lesions, pretraining
from benchmarks.experiments.arms import Arm
from benchmarks.experiments.results import Results
from benchmarks.experiments.run import config_keys, workflow
from benchmarks.experiments.sizes import SIZES
from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.spec import ModelSpec
from tests.experiments.examples import Recorder

EXPERIMENTS = {m.NAME: m for m in (lesions, pretraining, generalisation, classical)}


def arms_of(name: str, size: str, tmp_path: Path, monkeypatch) -> list[Arm]:
    """All arms of an experiment, trials included."""
    found: list[Arm] = []
    monkeypatch.setattr(classical, "_classical", lambda *_: None)
    monkeypatch.setattr(lesions, "voxelwise_line", lambda *_: None)
    runner = Recorder(tmp_path, Results(tmp_path / "results.jsonl"))
    monkeypatch.setattr(Recorder, "line", lambda self, arm: found.append(arm) or self._run(arm))
    EXPERIMENTS[name].run(runner, SIZES[size])
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_arms_are_distinct_and_set_only_keys_of_the_bundle(name, size, tmp_path, monkeypatch):
    arms = arms_of(name, size, tmp_path, monkeypatch)
    tested = [arm for arm in arms if arm.tests]
    assert len({arm.key for arm in arms}) == len(arms)
    assert {key for arm in arms for key in arm.settings} <= config_keys("train")
    assert {key for arm in arms if arm.pretraining for key in arm.pretraining.settings} <= config_keys(
        "pretrain"
    )
    seeds = {json.dumps(arm.labels): set() for arm in tested}
    for arm in tested:
        seeds[json.dumps(arm.labels)].add(arm.seed)
    assert min(map(len, seeds.values())) >= (1 if size == "small" else 3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_head_is_in_training_and_in_a_test(name, size, tmp_path, monkeypatch):
    for arm in arms_of(name, size, tmp_path, monkeypatch):
        seen = {arm.cohort.seed} | ({arm.pretraining.cohort.seed} if arm.pretraining else set())
        assert seen.isdisjoint(test.seed for test in arm.tests)


@pytest.mark.parametrize("size", SIZES)
def test_every_method_has_as_many_trials(size, tmp_path, monkeypatch):
    arms = arms_of("lesions", size, tmp_path, monkeypatch)
    trials = [arm.labels["method"] for arm in arms if "trial" in arm.labels]
    rates = len(SIZES[size].rates)
    assert {trials.count(method) for method in lesions.METHODS} == {rates if rates > 1 else 0}


@pytest.mark.parametrize("size", SIZES)
def test_plain_and_equivariant_have_about_the_same_number_of_parameters(size):
    counts = []
    for method in ("plain", "equivariant"):
        own = SIZES[size].networks[method]
        network = build_network(ModelSpec.of({**own, "task": "lesion"}))
        counts.append(sum(p.numel() for p in network.parameters()))
    assert max(counts) / min(counts) < 1.1


def test_unknown_key_of_a_config_is_named():
    with pytest.raises(ValueError, match=r"train\.json has no key 'learning_rat'"):
        workflow("train", learning_rat=0.1)
