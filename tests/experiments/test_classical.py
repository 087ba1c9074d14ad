"""The classical methods on phantom heads."""

from __future__ import annotations

import dataclasses

import torch

from benchmarks.experiments import classical
from dmri_monai.io import read_dwi, read_nifti
from dmri_monai.io.bids import data_list
from dmri_monai.tasks import find_task
from tests.experiments.examples import COHORT


def test_thresholds_find_fluid_white_and_grey_matter():
    subject = dataclasses.replace(COHORT, size=24, spacing_mm=5.0, shells=((1000.0, 32),)).subject(0)
    found = classical.threshold_tissue(subject.image.as_tensor(), subject.table, (0.2, 1.5e-3))
    dice = classical._tissue_scores(found, subject.dseg[None].float())
    assert min(dice.values()) > 0.4


def test_tensor_axis_is_found_on_the_scan_as_stored(tmp_path):
    one = {"subjects": 1, "size": 24, "spacing_mm": 5.0, "shells": ((1000.0, 32),)}
    cohort = dataclasses.replace(COHORT, **one, snr=(200.0, 200.0), turned=True)
    item = data_list(cohort.write(tmp_path), labels={"label": find_task("orientation").label})[0]
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
