"""Means, spreads, paired tests and their correction against NumPy and SciPy, and lines that are never lost."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import Comparison, choose, compare, corrected, flat, scores, summary
from tests.experiments.examples import line


def lines_of(values: np.ndarray, **labels) -> list[dict]:
    return [line(seed, row, **labels) for seed, row in enumerate(values)]


def test_summary_is_that_of_numpy():
    found = summary(np.array([[0.1, 0.3], [0.5, 0.9], [0.2, np.nan]]))
    means = [0.2, 0.7, 0.2]
    np.testing.assert_allclose([found.mean, found.sd], [np.mean(means), np.std(means, ddof=1)])


def test_comparison_is_paired_over_heads():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 7)), rng.normal(size=(4, 7))
    found = compare(lines_of(a), lines_of(b), "turned", "average_precision")
    np.testing.assert_allclose(found.p, stats.ttest_rel(a.mean(0), b.mean(0)).pvalue, rtol=1e-12)
    difference = a.mean(1) - b.mean(1)
    np.testing.assert_allclose([found.mean, found.sd], [difference.mean(), difference.std(ddof=1)])
    turned_around = compare(lines_of(a), lines_of(b), "turned", "average_precision", lower_is_better=True)
    assert turned_around.mean == pytest.approx(-found.mean)


def test_only_seeds_and_heads_of_both_are_compared():
    a, b = np.array([[1.0, 2.0, 9.0], [1.5, 2.5, 9.0]]), np.array([[0.5, 1.0, np.nan], [1.0, 2.0, 5.0]])
    found = compare(lines_of(a), lines_of(b), "turned", "average_precision")
    assert (found.n_seeds, found.n_heads) == (2, 2)
    one = compare(lines_of(a), lines_of(b)[1:], "turned", "average_precision")
    assert (one.n_seeds, one.mean) == (1, pytest.approx((0.5 + 0.5 + 4.0) / 3))
    assert compare(lines_of(a)[:1], lines_of(b)[1:], "turned", "average_precision") is None


def test_method_without_randomness_stands_for_every_seed():
    fixed = [{k: v for k, v in line(0, [0.1, 0.2]).items() if k != "recipe"}]
    found = compare(lines_of(np.array([[0.3, 0.4], [0.4, 0.5]])), fixed, "turned", "average_precision")
    assert (found.n_seeds, found.mean) == (2, pytest.approx(0.25))


def test_correction_is_that_of_scipy_and_makes_claims_harder():
    pairs = {i: Comparison(0.1, 0.01, True, p, 3, 5) for i, p in enumerate((0.01, 0.04, 0.5))}
    found = corrected({**pairs, "missing": None, "equal": Comparison(0.0, 0.0, True, float("nan"), 3, 5)})
    expected = stats.false_discovery_control([0.01, 0.04, 0.5])
    np.testing.assert_allclose([found[i].adjusted for i in range(3)], expected)
    assert "missing" not in found
    assert [found[i].better for i in range(3)] == [True, False, False]
    assert not found["equal"].better


@pytest.mark.parametrize(
    ("change", "better"),
    [
        ({}, True),
        ({"same": False}, False),
        ({"n_seeds": 1}, False),
        ({"adjusted": 0.06}, False),
        ({"mean": -0.1}, False),
    ],
)
def test_better_needs_every_seed_and_the_corrected_test(change, better):
    values = {"mean": 0.1, "sd": 0.01, "same": True, "p": 0.001, "n_seeds": 2, "n_heads": 5, "adjusted": 0.01}
    found = Comparison(**{**values, **change})
    assert found.better is better
    assert found.worse is (change == {"mean": -0.1})


def test_scores_average_the_classes_and_pass_over_missing_ones():
    tests = {"test": {"dice_WM": [0.2, None], "dice_GM": [0.4, 0.6], "hd95_WM": [5.0, 5.0]}}
    np.testing.assert_allclose(
        scores([{"labels": {}, "seed": 0, "tests": tests}], "test", "dice"), [[0.3, 0.6]]
    )


def test_two_lines_of_one_seed_are_an_error():
    with pytest.raises(ValueError, match="several lines of one seed"):
        scores([line(0), line(0)], "turned", "average_precision")


def test_trials_are_never_chosen():
    assert choose([{**line(0, trial="0.1"), "tests": {}}, line(1)]) == [line(1)]


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


@pytest.mark.parametrize(("end", "expected"), [(0.6, True), (0.61, True), (0.7, False), (0.3, True)])
def test_curve_is_flat_where_its_end_brings_hardly_anything(end, expected):
    values = [0.1, 0.4, 0.5, 0.55, 0.58, 0.6, 0.59, end]
    assert flat({"curve": [(step, 1.0, value) for step, value in enumerate(values)]}) is expected
