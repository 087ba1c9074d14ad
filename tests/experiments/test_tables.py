"""Means, spreads and paired tests against NumPy and SciPy, and the verdicts they lead to."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.experiments.sections import verdict
from benchmarks.experiments.tables import Paired, paired, scores, summary
from tests.experiments.examples import line


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


def test_one_seed_has_no_verdict():
    assert verdict(Paired(0.2, float("nan"), float("nan"), 0.5, 1, 4), 0.0) == "one seed"
