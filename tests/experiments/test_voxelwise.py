"""The regression of rotation invariants."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from benchmarks.experiments.results import Results
from benchmarks.experiments.run import Runner
from benchmarks.experiments.tables import scores
from benchmarks.experiments.voxelwise import invariants, voxelwise_line
from dmri_monai.qspace.harmonics import signal_to_harmonics
from dmri_monai.transforms.random_rotation import random_rotation
from tests.experiments.examples import COHORT


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


@pytest.mark.slow
def test_regression_learns_lesions_and_is_run_once(tmp_path):
    cohort = dataclasses.replace(COHORT, size=24, spacing_mm=5.5, subjects=6)
    test = dataclasses.replace(cohort, name="turned", seed=2, subjects=3, turned=True)
    runner = Runner(tmp_path, Results(tmp_path / "results.jsonl"))
    for _ in range(2):
        voxelwise_line(runner, "lesions", {"method": "voxelwise"}, 0, cohort, (test,), 4)
    (found,) = runner.results.lines()
    assert np.nanmean(scores([found], "turned", "roc_auc")) > 0.8
    assert found["train_subjects"] == 4
