"""Cohorts: heads that lie turned, with their table and peaks, and heads already written."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.qspace.tensor import fit_tensor, tensor_metrics
from tests.experiments.examples import COHORT


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


def test_stored_head_is_simulated_once_and_the_same(tmp_path, monkeypatch):
    first = COHORT.stored(tmp_path, 1)
    monkeypatch.setattr(type(COHORT), "subject", lambda self, number: pytest.fail("simulated again"))
    again = COHORT.stored(tmp_path, 1)
    torch.testing.assert_close(first.image.as_tensor(), again.image.as_tensor())
    assert again.parameters["HeadTurn"] == first.parameters["HeadTurn"]
    assert dataclasses.replace(COHORT, snr=(9.0, 9.0)).folder(tmp_path) != COHORT.folder(tmp_path)
