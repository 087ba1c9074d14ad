"""What is written of a prediction: all files of one call together, nothing of an earlier one, nothing of others'."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dmri_monai.inference.model import load_model
from dmri_monai.scan import Scan
from tests.small_models import save_model

EVERYTHING = [
    "sub-01_dseg.html",
    "sub-01_dseg.json",
    "sub-01_dseg.nii.gz",
    "sub-01_dseguncertainty.json",
    "sub-01_dseguncertainty.nii.gz",
]


@pytest.fixture(scope="module")
def scan(smallest_scan):
    return smallest_scan


@pytest.fixture(scope="module")
def found(scan, checkpoint):
    """A prediction of an ensemble, with an uncertainty."""
    return load_model(checkpoint, "cpu").predict(Scan.read(scan), ensemble="flips")


@pytest.fixture(scope="module")
def plain(found):
    """The same without one."""
    return replace(found, uncertainty=None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_of_a_prediction_are_those_it_names(found, tmp_path):
    written = found.write(tmp_path, report=True)
    assert names(tmp_path) == EVERYTHING
    assert sorted(path.name for path in written.files.values()) == EVERYTHING
    assert found.files == {}  # the prediction itself is left alone


def test_sidecar_of_an_uncertainty_tells_what_it_is_and_from_what_it_was_made(found, tmp_path):
    files = found.write(tmp_path).files
    said, main = (json.loads(files[kind].read_text()) for kind in ("uncertainty sidecar", "sidecar"))
    assert said["Description"].startswith("Spread of the predictions")
    assert {name: said[name] for name in found.provenance} == dict(found.provenance)
    assert said["GeneratedBy"] == main["GeneratedBy"]
    assert not {"Task", "Labels"} & set(said)  # which are of the map


def test_prediction_and_model_are_shown_in_a_line(found, plain, checkpoint, tmp_path):
    model = load_model(checkpoint, "cpu")
    assert repr(model) == f"TrainedModel(tissue, EquivariantUNet, {str(checkpoint)!r}, cpu)"
    values = "(1, 10, 12, 10) 0 background, 1 WM, 2 GM, 3 CSF"
    warned = replace(plain, warnings=("a", "b"))
    assert repr(warned) == f"Prediction(tissue of sub-01_dwi.nii.gz; {values}; 2 warnings)"
    assert (
        repr(replace(found, warnings=())) == f"Prediction(tissue of sub-01_dwi.nii.gz; {values}; uncertainty)"
    )
    assert repr(replace(warned, warnings=()).write(tmp_path)).endswith("; 2 files)")


def test_report_is_written_on_request_alone(plain, tmp_path):
    plain.write(tmp_path / "without")
    plain.write(tmp_path / "with", report=True)
    assert names(tmp_path / "without") == ["sub-01_dseg.json", "sub-01_dseg.nii.gz"]
    assert names(tmp_path / "with") == ["sub-01_dseg.html", "sub-01_dseg.json", "sub-01_dseg.nii.gz"]


def test_uncertainty_and_report_of_an_earlier_run_go(found, plain, tmp_path):
    found.write(tmp_path, report=True)
    plain.write(tmp_path)
    assert names(tmp_path) == ["sub-01_dseg.json", "sub-01_dseg.nii.gz"]


def test_results_of_another_scan_or_task_stay(found, plain, tmp_path, scan):
    found.write(tmp_path, name="sub-02", report=True)
    peaks = load_model(save_model(tmp_path / "model.pt", "orientation"), "cpu").predict(Scan.read(scan))
    peaks.write(tmp_path / "out", report=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    plain.write(tmp_path)
    plain.write(tmp_path / "out")
    assert all(path.read_bytes() == content for path, content in before.items())


BY_HAND = {
    "nothing": None,
    "a label's sidecar": {"Manual": True},
    "made by others": {"GeneratedBy": [{"Name": "annotator"}]},
    "a list": [],
    "odd types": {"GeneratedBy": "dmri_monai"},
}


@pytest.mark.parametrize("sidecar", BY_HAND.values(), ids=BY_HAND.keys())
@pytest.mark.parametrize("kind", EVERYTHING)
def test_file_that_no_prediction_wrote_is_never_replaced(found, tmp_path, kind, sidecar):
    (tmp_path / kind).write_bytes(b"by hand")
    if sidecar is not None:
        (tmp_path / "sub-01_dseg.json").write_text(json.dumps(sidecar))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=r"sub-01_dseg.* exists and was not written by a prediction"):
        found.write(tmp_path, report=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    found.write(tmp_path, report=True, overwrite=True)
    assert names(tmp_path) == EVERYTHING
    assert all((tmp_path / name).read_bytes() != b"by hand" for name in EVERYTHING)


def test_link_to_a_label_made_by_hand_is_not_followed(plain, tmp_path):
    (tmp_path / "label.nii.gz").write_bytes(b"by hand")
    out = tmp_path / "out"
    out.mkdir()
    (out / "sub-01_dseg.nii.gz").symlink_to(tmp_path / "label.nii.gz")
    with pytest.raises(FileExistsError):
        plain.write(out)
    plain.write(out, overwrite=True)
    assert (tmp_path / "label.nii.gz").read_bytes() == b"by hand"


def test_full_disk_leaves_the_earlier_files(found, plain, tmp_path, full_disk):
    plain.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk, pytest.raises(OSError, match="sub-01_dseg"):
        found.write(tmp_path, report=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_map_and_sidecar_are_replaced_together_or_not_at_all(found, plain, tmp_path, monkeypatch):
    plain.write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(*args, **kwargs):
        raise RuntimeError("no picture")

    monkeypatch.setattr("dmri_monai.report.write_report", fails)
    with pytest.raises(RuntimeError, match="no picture"):
        replace(found, warnings=("another",)).write(tmp_path, report=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("task", ["tissue", "lesion", "orientation"])
def test_values_are_stored_as_they_are_named(scan, tmp_path, task):
    found = load_model(save_model(tmp_path / "model.pt", task), "cpu").predict(Scan.read(scan))
    shape, dtype = ((10, 12, 10), torch.uint8) if found.class_names else ((3, 10, 12, 10), torch.float32)
    assert (tuple(found.values.shape), found.values.dtype) == (shape, dtype)
