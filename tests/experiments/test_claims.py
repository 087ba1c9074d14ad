"""When a claim of the papers holds."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.experiments.claims import lesion_claim, pretraining_claim, rotation_claim, time_claim
from benchmarks.experiments.sizes import WHOLE
from tests.experiments.examples import line


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
