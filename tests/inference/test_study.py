"""Predictions for whole studies: BIDS in, BIDS derivatives out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import pytest
from typer.testing import CliRunner

from dmri_monai.cli import app
from dmri_monai.inference.study import own_share
from dmri_monai.phantom import write_dataset

SCANS = ("sub-01", "sub-02", "sub-03")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Three small subjects, the second with a broken image."""
    out = tmp_path_factory.mktemp("study") / "my study #1"
    write_dataset(out, subjects=3, seed=0, shape=(16, 18, 16), spacing_mm=(7.0, 7.0, 7.0), progress=False)
    broken = out / "sub-02" / "dwi" / "sub-02_dwi.nii.gz"
    broken.write_bytes(broken.read_bytes()[:5000])
    return out


def run(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments), "--device", "cpu"])


@pytest.fixture(scope="module")
def done(study, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("derivatives") / "dmri"
    return run(study, "-o", out, "--checkpoint", checkpoint), out


def maps(out):
    return sorted(path.name for path in out.rglob("*_dseg.nii.gz"))


def test_one_broken_scan_is_reported_and_the_others_are_done(done):
    result, out = done
    assert result.exit_code == 1
    assert "2 predicted, 1 failed" in result.output
    assert maps(out) == ["sub-01_desc-tissue_dseg.nii.gz", "sub-03_desc-tissue_dseg.nii.gz"]


def test_maps_lie_where_bids_wants_them_on_the_grid_of_their_scan(done, study):
    _, out = done
    path = out / "sub-01" / "dwi" / "sub-01_desc-tissue_dseg.nii.gz"
    scan = nibabel.load(study / "sub-01" / "dwi" / "sub-01_dwi.nii.gz")
    assert nibabel.load(path).shape == scan.shape[:3]
    record = json.loads(path.with_name("sub-01_desc-tissue_dseg.json").read_text(encoding="utf-8"))
    assert record["Sources"] == ["bids:raw:sub-01/dwi/sub-01_dwi.nii.gz"]
    assert record["Labels"]["1"] == "WM"
    description = json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "dmri_monai"
    assert description["SourceDatasets"][0]["URL"].endswith("my%20study%20%231")


def test_index_links_the_pages_of_the_subjects_and_names_the_failure(done):
    _, out = done
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count('href="./sub-') == 2
    assert (out / "sub-01.html").is_file()
    assert "failed" in page
    assert "sub-02_dwi.nii.gz" in page


def test_resumed_study_passes_over_what_is_done_and_redoes_the_rest(study, checkpoint, tmp_path):
    first = run(study, "-o", tmp_path, "--checkpoint", checkpoint, "--no-report")
    assert "2 predicted" in first.output
    kept = tmp_path / "sub-01" / "dwi" / "sub-01_desc-tissue_dseg.nii.gz"
    before = kept.stat().st_mtime_ns
    (tmp_path / "sub-03" / "dwi" / "sub-03_desc-tissue_dseg.json").unlink()  # half done
    again = run(study, "-o", tmp_path, "--checkpoint", checkpoint, "--no-report", "--resume")
    assert "1 predicted, 1 resumed, 1 failed" in again.output
    assert kept.stat().st_mtime_ns == before


def test_prediction_of_other_weights_is_not_taken_for_done(study, checkpoint, tmp_path):
    from tests.small_models import save_model

    run(study, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--no-report")
    other = save_model(tmp_path / "other.pt", l_max=2, order_scale=(1.0, 15.0))
    again = run(study, "-o", tmp_path / "out", "--checkpoint", other, "--no-report", "--resume")
    assert "2 predicted, 1 failed" in again.output


def test_two_workers_predict_the_same_maps(done, study, checkpoint, tmp_path):
    result = run(study, "-o", tmp_path, "--checkpoint", checkpoint, "--no-report", "--workers", "2")
    assert "2 predicted, 1 failed" in result.output
    for name in ("sub-01", "sub-03"):
        one, two = (
            (folder / name / "dwi" / f"{name}_desc-tissue_dseg.nii.gz").read_bytes()
            for folder in (done[1], tmp_path)
        )
        assert one == two


def test_two_processes_share_the_scans(study, checkpoint, tmp_path):
    """As torchrun or a SLURM array starts them."""
    root = Path(__file__).parents[2]
    code = "from dmri_monai.cli import app; app()"
    shares = []
    for rank in ("0", "1"):
        out = tmp_path / rank
        environment = {**os.environ, "RANK": rank, "WORLD_SIZE": "2", "PYTHONPATH": str(root)}
        arguments = [
            "predict",
            study,
            "-o",
            out,
            "--checkpoint",
            checkpoint,
            "--no-report",
            "--device",
            "cpu",
        ]
        subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True
        )
        shares.append(maps(out))
    assert shares == [
        ["sub-01_desc-tissue_dseg.nii.gz", "sub-03_desc-tissue_dseg.nii.gz"],
        [],
    ]  # 02 is broken


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "abcde"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "bd"),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "3"}, "c"),
    ],
    ids=["alone", "torchrun", "slurm"],
)
def test_shares_of_all_processes_are_the_whole(environment, expected):
    assert "".join(own_share("abcde", environment)) == expected


def test_folder_of_another_tool_is_not_written_into(study, checkpoint, tmp_path):
    (tmp_path / "dataset_description.json").write_text(
        '{"Name": "fMRIPrep", "GeneratedBy": [{"Name": "fMRIPrep"}]}'
    )
    result = run(study, "-o", tmp_path, "--checkpoint", checkpoint)
    assert result.exit_code == 2
    assert "was not written by dmri_monai" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["dataset_description.json"]


def test_label_drawn_by_hand_is_not_replaced(study, checkpoint, tmp_path):
    own = tmp_path / "sub-01" / "dwi" / "sub-01_desc-tissue_dseg.nii.gz"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    result = run(study, "-o", tmp_path, "--checkpoint", checkpoint, "--no-report")
    assert own.read_bytes() == b"mine"
    assert "1 predicted, 2 failed" in result.output
