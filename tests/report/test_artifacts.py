"""The table of simulated artifacts says what the record says."""

from __future__ import annotations

import json

import pytest

from dmri_monai.artifacts.engine import ARTIFACTS, Ghost, Preset, SliceDropout, corrupt, ground_truth
from dmri_monai.report import artifact_rows, recorded_artifacts
from tests.check.fibres import ring_scan
from tests.conftest import STANDARD_AFFINES

AFFINE = STANDARD_AFFINES["oblique-left-2x2x2.5"]


def record_of(*artifacts, preset: str | None = None, seed: int = 0) -> dict:
    image, gradients = ring_scan(AFFINE)
    table = (gradients.bvals, gradients.in_voxel_frame(AFFINE))
    chosen = preset or Preset("chosen", artifacts)
    return corrupt(image, *table, affine=AFFINE, preset=chosen, seed=seed)[1]


def test_a_row_counts_what_the_artifact_changed_and_names_its_strength():
    record = record_of(SliceDropout(prob=1.0), Ghost(prob=1.0, phase_deg=(12.0, 12.0)))
    rows = {row["artifact"]: row for row in artifact_rows(record)}
    assert list(rows) == ["slice dropout", "ghost"]
    hits = ground_truth(record, AFFINE)["slice_dropout"]
    assert rows["slice dropout"]["volumes"] == f"{int(hits.any(1).sum())} of 33"
    assert rows["slice dropout"]["slices"] == f"{int(hits.sum())} of {hits.numel()}"
    assert 0 < hits.sum() < hits.numel()
    assert rows["ghost"]["drawn"] == "axis front-back; phase deg 12"


def test_many_numbers_are_given_by_their_range():
    record = record_of(SliceDropout(prob=1.0))
    loss = record["applied"][0]["drawn"]["loss"]
    (row,) = artifact_rows(record)
    assert f"loss {min(loss):.4g} to {max(loss):.4g} ({len(loss)} numbers)" in row["drawn"]
    assert "volumes" not in row["drawn"]


@pytest.mark.parametrize("name", ARTIFACTS)
def test_every_artifact_can_be_told(name):
    record = record_of(ARTIFACTS[name](prob=1.0), seed=2)
    (row,) = artifact_rows(json.dumps(record))
    assert row["artifact"] == name.replace("_", " ")
    assert row["drawn"]
    assert not {"[", "{"} & set(row["drawn"])


def test_a_record_is_read_from_a_phantoms_sidecar_alone(tmp_path):
    scan, sidecar = tmp_path / "sub-01_dwi.nii.gz", tmp_path / "sub-01_dwi.json"
    assert recorded_artifacts(scan) is None
    sidecar.write_text('{"EchoTime": 0.08, "Phantom": {"SNR": 20}}', encoding="utf-8")
    assert recorded_artifacts(scan) is None
    record = record_of(Ghost(prob=1.0))
    sidecar.write_text(json.dumps({"Phantom": {"Artifacts": record}}), encoding="utf-8")
    assert artifact_rows(recorded_artifacts(scan)) == artifact_rows(record)


def test_nothing_drawn_gives_no_row():
    assert artifact_rows(record_of(Ghost(prob=0.0))) == []
