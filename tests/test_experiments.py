"""Bookkeeping of the experiments: arms, results that resume, paired numbers; one arm end to end."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.experiments import classical, generalisation, lesions, page, pretraining
from benchmarks.experiments.arms import Arm, Budget
from benchmarks.experiments.claims import lesion_claim, pretraining_claim, rotation_claim, time_claim
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.results import Results
from benchmarks.experiments.run import Runner, config_keys, workflow
from benchmarks.experiments.sections import verdict
from benchmarks.experiments.sizes import SIZES, SMALL, WHOLE
from benchmarks.experiments.tables import Paired, choose, paired, scores, summary
from benchmarks.experiments.voxelwise import invariants, voxelwise_line
from dmri_monai.inference.model import Model, build_network
from dmri_monai.io import read_dwi, read_nifti
from dmri_monai.io.bids import data_list
from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.qspace.harmonics import signal_to_harmonics
from dmri_monai.qspace.tensor import fit_tensor, tensor_metrics
from dmri_monai.tasks.tasks import task
from dmri_monai.transforms.random_rotation import random_rotation

EXPERIMENTS = {m.NAME: m for m in (lesions, pretraining, generalisation, classical)}
COHORT = Cohort("train", 5, 1, 16, 8.0, ((1000.0, 16),))
ARM = Arm("test", {"method": "plain"}, 0, COHORT, {"task": "tissue", "spacing_mm": [8.0] * 3}, Budget(4))
DOCS = Path(__file__).parents[1] / "docs"


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


@pytest.fixture
def recorder(tmp_path) -> Recorder:
    return Recorder(tmp_path, Results(tmp_path / "results.jsonl"))


def arms_of(name: str, size: str, tmp_path: Path, monkeypatch) -> list[Arm]:
    """All arms of an experiment, trials included."""
    found: list[Arm] = []
    monkeypatch.setattr(classical, "_classical", lambda *_: None)
    monkeypatch.setattr(lesions, "voxelwise_line", lambda *_: None)
    runner = Recorder(tmp_path, Results(tmp_path / "results.jsonl"))
    monkeypatch.setattr(Recorder, "line", lambda self, arm: found.append(arm) or self._run(arm))
    EXPERIMENTS[name].run(runner, SIZES[size])
    return found


def line(seed=0, value=0.5, test="turned", column="average_precision", **labels) -> dict:
    tests = {test: {column: list(np.atleast_1d(value))}}
    return {"key": str(labels), "labels": labels, "seed": seed, "tests": tests}


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


def test_a_key_is_added_once(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.add({"key": "a"})
    with pytest.raises(ValueError, match="already has a line a"):
        results.add({"key": "a"})


def test_line_that_cannot_be_written_leaves_the_others(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    results.add({"key": "a"})
    with pytest.raises(TypeError, match="not JSON serializable"):
        results.add({"key": "b", "value": object()})
    assert results.lines() == [{"key": "a"}]


@pytest.mark.parametrize("text", ["{broken", '{"seed": 0}'], ids=["no JSON", "no key"])
def test_bad_line_is_named(tmp_path, text):
    path = tmp_path / "results.jsonl"
    path.write_text('{"key": "a"}\n' + text + "\n")
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
        model = Model(
            own["architecture"],
            own.get("size", "small"),
            own.get("network_options", {}),
            order_scale=[1.0, 15.0, 20.0],
        )
        counts.append(sum(p.numel() for p in build_network(model, "1x0e").parameters()))
    assert max(counts) / min(counts) < 1.1


def test_summary_is_that_of_numpy():
    values = np.array([[0.1, 0.3], [0.5, 0.9], [0.2, np.nan]])
    found = summary(values)
    means = [0.2, 0.7, 0.2]
    np.testing.assert_allclose([found.mean, found.sd], [np.mean(means), np.std(means, ddof=1)])


def test_paired_numbers_are_those_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 7)), rng.normal(size=(4, 7))
    found = paired(a, b)
    expected = [stats.ttest_rel(a.mean(axis), b.mean(axis)).pvalue for axis in (1, 0)]
    np.testing.assert_allclose([found.p_seeds, found.p_subjects], expected, rtol=1e-12)
    difference = a.mean(1) - b.mean(1)
    np.testing.assert_allclose([found.mean, found.sd], [difference.mean(), difference.std(ddof=1)])


def test_subject_without_a_value_in_one_arm_is_left_out_of_both():
    a, b = np.array([[1.0, 2.0, 9.0], [1.5, 2.5, 9.0]]), np.array([[0.5, 1.0, np.nan], [1.0, 2.0, 5.0]])
    assert paired(a, b) == paired(a[:, :2], b[:, :2])


def test_scores_average_the_classes_and_pass_over_missing_ones():
    tests = {"test": {"dice_WM": [0.2, None], "dice_GM": [0.4, 0.6], "hd95_WM": [5.0, 5.0]}}
    one = {"labels": {}, "seed": 0, "tests": tests}
    np.testing.assert_allclose(scores([one], "test", "dice"), [[0.3, 0.6]])


def test_two_lines_of_one_seed_are_an_error():
    with pytest.raises(ValueError, match="several lines of one seed"):
        scores([line(0), line(0)], "turned", "average_precision")


@pytest.mark.parametrize(
    ("gain", "larger", "expected"),
    [(0.2, True, "better"), (-0.2, True, "worse"), (-0.2, False, "better"), (0.05, True, "within")],
)
def test_verdict_compares_the_difference_with_the_spread(gain, larger, expected):
    found = Paired(gain, 0.0, 0.5, 0.5, 3, 4)
    assert verdict(found, 0.1, larger).startswith(expected)


def lesion_lines(plain: float, yardstick: float, share: float = 0.2) -> list[dict]:
    arms = {"equivariant": 0.5, "plain": plain, "voxelwise": yardstick}
    lines = [
        line(seed, value + shift, study="data", method=method, share=share)
        for (seed, shift), (method, value) in itertools.product(enumerate((-0.05, 0.0, 0.05)), arms.items())
    ]
    for one in lines:
        one["tests"]["upright"] = one["tests"]["turned"]
    return lines


@pytest.mark.parametrize(
    ("plain", "yardstick", "expected"),
    [
        (0.3, 0.2, "holds"),
        (0.1, 0.2, "holds against a weak rival"),
        (0.48, 0.2, "does not hold"),
        (0.48, 0.6, "does not hold"),
    ],
)
def test_lesion_claim_wants_more_than_the_spread_and_names_a_weak_rival(plain, yardstick, expected):
    assert lesion_claim(lesion_lines(plain, yardstick), "equivariant", "turned")[0] == expected


def test_lesion_claim_is_open_while_a_share_or_the_seeds_are_missing():
    full = lesion_lines(0.3, 0.2)
    other = [one for one in lesion_lines(0.3, 0.2, share=0.5) if one["labels"]["method"] != "plain"]
    assert lesion_claim(full + other, "equivariant", "turned")[0] == "open"
    assert lesion_claim([one for one in full if one["seed"] == 0], "equivariant", "turned")[0] == "open"


@pytest.mark.parametrize(
    ("crossings", "angle", "expected"),
    [
        (0.4, 20.0, "holds"),
        (0.5, 24.9, "holds in the mean only"),
        (0.4, 24.9, "not decided"),
        (0.4, 30.0, "does not hold"),
    ],
)
def test_pretraining_claim_counts_tasks_and_knows_that_small_angles_are_good(crossings, angle, expected):
    columns = {"tissue": "dice", "crossings": "macro_f1", "orientation": "angular_error_median_deg"}
    artifacts = {"tissue": 0.6, "crossings": crossings, "orientation": angle}
    none = {"tissue": 0.5, "crossings": 0.5, "orientation": 25.0}
    lines = []
    for (name, column), labelled in itertools.product(columns.items(), (2, 20)):
        common = {
            "task": name,
            "labelled": labelled,
            "architecture": "plain",
            "test": "test",
            "column": column,
        }
        for seed in range(2):
            noise = 0.5 * seed * (name == "orientation")
            rival = none if labelled == 2 else artifacts
            lines.append(line(seed, artifacts[name] + noise, pretext="artifacts", preset="all", **common))
            lines.append(line(seed, rival[name] + noise, pretext="none", **common))
    assert pretraining_claim(lines, "plain", "none", 2)[0] == expected
    assert pretraining_claim(lines, "plain", "none", 20)[0] == "does not hold"
    assert pretraining_claim(lines[:4], "plain", "none", 2)[0] == "open"


def test_claim_without_lines_is_open():
    assert lesion_claim([], "pq", "turned") == ("open", "not run")


def test_page_says_what_was_not_run():
    text = page.page({size: {name: [] for name in EXPERIMENTS} for size in SIZES}, DOCS / "results")
    assert text.count("**Not run at this size: lesion segmentation, pretraining") == len(page.PUBLISHED)


def test_results_page_is_the_one_of_the_lines(tmp_path):
    shutil.copytree(DOCS / "results", tmp_path / "results")
    page.write(tmp_path / "results")
    assert (tmp_path / "results.md").read_text() == (DOCS / "results.md").read_text()


def test_turned_head_has_another_orientation_and_the_same_anatomy():
    upright, turned = (dataclasses.replace(COHORT, turned=t).subject(0) for t in (False, True))
    assert upright.parameters["Contrast"] == turned.parameters["Contrast"]
    torch.testing.assert_close(upright.affine, turned.affine)
    volumes = [float((s.dseg > 0).sum()) for s in (upright, turned)]
    assert volumes[1] == pytest.approx(volumes[0], rel=0.05)
    assert (upright.dseg != turned.dseg).float().mean() > 0.05


def directions_error_deg(subject, bvecs) -> float:
    """Median angle between the tensor's axis and the largest peak, where one fibre dominates."""
    where = (subject.npeaks == 1) & (subject.peaks_world[:3].norm(dim=0) > 0.6)
    fit = tensor_metrics(fit_tensor(subject.clean[None], subject.table.bvals[None], bvecs[None]))
    angles = axial_angle_deg(fit.v1, subject.peaks_world[None, :3])
    return float(angles[0][where].median())


def test_table_and_peaks_turn_with_the_head():
    subject = dataclasses.replace(COHORT, turned=True, shells=((1000.0, 32),)).subject(1)
    assert directions_error_deg(subject, subject.table.bvecs) < 3.0


def test_table_that_did_not_turn_disagrees_with_the_peaks():
    subject = dataclasses.replace(COHORT, turned=True, shells=((1000.0, 32),)).subject(1)
    turn = torch.tensor(subject.parameters["HeadTurn"], dtype=torch.float64)
    assert directions_error_deg(subject, subject.table.bvecs @ turn) > 20.0


def test_cohort_is_completed_not_rewritten(tmp_path):
    few = dataclasses.replace(COHORT, subjects=1)
    folder = few.write(tmp_path)
    scan = folder / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    before = scan.stat().st_mtime_ns
    few.write(tmp_path)
    assert scan.stat().st_mtime_ns == before


def test_unknown_key_of_a_config_is_named():
    with pytest.raises(ValueError, match=r"train\.json has no key 'learning_rat'"):
        workflow("train", learning_rat=0.1)


@pytest.mark.parametrize("name", ["tissue", "crossings", "orientation"])
def test_classical_method_scores_itself_perfectly(name):
    subject = dataclasses.replace(COHORT, shells=((1000.0, 32),)).subject(0)
    truth = {"tissue": subject.dseg, "crossings": subject.npeaks, "orientation": subject.peaks_world}[name]
    label = (truth if truth.ndim == 4 else truth[None]).float()
    found = classical.SCORES[name](label, label)
    best = 0.0 if task(name).lower_is_better else 1.0
    assert classical._key_score(found) == pytest.approx(best, abs=1e-6)


def test_thresholds_find_fluid_white_and_grey_matter():
    subject = dataclasses.replace(COHORT, size=24, spacing_mm=5.0, shells=((1000.0, 32),)).subject(0)
    found = classical.threshold_tissue(subject.image.as_tensor(), subject.table, (0.2, 1.5e-3))
    dice = classical._tissue_scores(found, subject.dseg[None].float())
    assert min(dice.values()) > 0.4


def test_tensor_axis_is_found_on_the_scan_as_stored(tmp_path):
    one = {"subjects": 1, "size": 24, "spacing_mm": 5.0, "shells": ((1000.0, 32),)}
    cohort = dataclasses.replace(COHORT, **one, snr=(200.0, 200.0), turned=True)
    item = data_list(cohort.write(tmp_path), labels={"label": task("orientation").label})[0]
    image, table = read_dwi(item["image"])
    label = read_nifti(item["label"]).as_tensor()
    mirrored = dataclasses.replace(table, bvecs=table.bvecs * torch.tensor([-1.0, 1.0, 1.0]))
    error, control = (
        classical._key_score(
            classical.SCORES["orientation"](classical._peaks(image.as_tensor(), t, "tensor"), label)
        )
        for t in (table, mirrored)
    )
    assert error < 15.0
    assert control > error + 15.0


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


TINY = dataclasses.replace(SMALL, steps=2, seconds=1.0, tune_steps=2, pretrain_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_runs_and_is_drawn(name, tmp_path):
    results = Results(tmp_path / "results" / "small" / f"{name}.jsonl")
    EXPERIMENTS[name].run(Runner(tmp_path, results), TINY)
    page.write(tmp_path / "results")
    assert results.path.with_suffix(".png").stat().st_size > 5000
    text = (tmp_path / "results.md").read_text()
    assert f"### {page.TITLES[name]}" in text
    assert "nan" not in text.split(f"### {page.TITLES[name]}")[1].split("## Running")[0]


@pytest.mark.slow
def test_network_pretrained_on_three_shells_is_tuned_on_one(tmp_path):
    size = dataclasses.replace(TINY, hcp_shells=(1000.0, 2000.0, 3000.0), hcp_directions=16)
    assert [b for b, _ in pretraining.hcp_cohort(size).shells] == [1000.0, 2000.0, 3000.0]
    (arm,) = pretraining._seeds(size, "artifacts", "light", "plain", "tissue", 2)
    found = Runner(tmp_path, Results(tmp_path / "results.jsonl")).line(arm)
    assert np.isfinite(scores([found], "test", "dice")).all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [(-0.01, "holds"), (0.1, "holds"), (-0.021, "open"), (-0.023, "open"), (-0.04, "does not hold")],
)
def test_rotation_claim_compares_the_changes_of_both_networks(change, expected):
    def arms(method: str, turned: float) -> list[dict]:
        return [
            {"key": f"{method}{s}", "labels": {"method": method}, "seed": s,
             "tests": {"as trained": {"dice": [0.8]}, "turned heads": {"dice": [0.8 + turned + 0.003 * s]}}}
            for s in range(3)
        ]  # fmt: skip

    own, plain = arms("equivariant", change), arms("plain", -0.06)
    assert rotation_claim(own + plain, "equivariant", "plain")[0] == expected
    assert rotation_claim(own + plain, "pq", "plain") == ("open", "not run")
    assert rotation_claim(own + plain, "equivariant", WHOLE) == ("open", "not run")
    assert rotation_claim(own[:1] + plain, "equivariant", "plain") == ("open", "not run")
    assert rotation_claim(own + arms("plain", 0.01), "equivariant", "plain")[0] == "open"


@pytest.mark.parametrize(
    ("shift", "expected"), [(0.2, "holds"), (0.01, "does not hold"), (-0.2, "does not hold")]
)
def test_time_claim_wants_more_than_the_spread(shift, expected):
    arms = (("pq", shift), ("plain", 0.0))
    lines = [line(s, 0.5 + 0.05 * s + add, study="time", method=m) for s in range(3) for m, add in arms]
    assert time_claim(lines, "pq", "plain")[0] == expected
    assert time_claim(lines, "pq", "plain, wide") == ("open", "not run")


@pytest.mark.parametrize(
    ("regression", "expected"),
    [
        (0.5, "holds"),  # plain 0.55
        (0.6, "holds against a weak rival"),
        (0.8, "holds below the regression"),  # pq 0.75
    ],
)
def test_time_claim_names_arms_below_the_regression(regression, expected):
    arms = (("pq", 0.2), ("plain", 0.0))
    lines = [line(s, 0.5 + 0.05 * s + add, study="time", method=m) for s in range(3) for m, add in arms]
    lines += [line(s, regression, study="data", method="voxelwise", share=1.0) for s in range(3)]
    assert time_claim(lines, "pq", "plain")[0] == expected


def test_one_seed_has_no_verdict():
    assert verdict(Paired(0.2, float("nan"), float("nan"), 0.5, 1, 4), 0.0) == "one seed"


def test_invariants_of_a_head_do_not_depend_on_how_it_lies():
    upright, turned = (dataclasses.replace(COHORT, turned=t, snr=(1e6, 1e6)) for t in (False, True))
    one, subject = upright.subject(0), turned.subject(0)
    table = one.table
    spun = type(table)(table.bvals, table.bvecs @ random_rotation(np.random.RandomState(0)).double())
    first = invariants(one.image.as_tensor(), table, 1000.0)
    inside = one.brain_mask == 1
    torch.testing.assert_close(
        invariants(one.image.as_tensor(), spun, 1000.0)[:, inside], first[:, inside], rtol=1e-3, atol=1e-3
    )
    assert invariants(subject.image.as_tensor(), subject.table, 1000.0).shape == first.shape
    raw = [signal_to_harmonics(one.image.as_tensor()[None], t.bvals[None], t.bvecs[None], shells=[1000.0])[0]
           for t in (table, spun)]  # fmt: skip
    assert (raw[0] - raw[1])[2:, inside].norm() > 0.3 * raw[0][
        2:, inside
    ].norm()  # the control: channels do turn


def test_regression_learns_lesions_and_is_run_once(tmp_path):
    cohort = dataclasses.replace(COHORT, size=24, spacing_mm=5.5, subjects=6)
    test = dataclasses.replace(cohort, name="turned", seed=2, subjects=3, turned=True)
    runner = Runner(tmp_path, Results(tmp_path / "results.jsonl"))
    for _ in range(2):
        voxelwise_line(runner, "lesions", {"method": "voxelwise"}, 0, cohort, (test,), 4)
    (found,) = runner.results.lines()
    assert np.nanmean(scores([found], "turned", "roc_auc")) > 0.8
    assert found["train_subjects"] == 4
