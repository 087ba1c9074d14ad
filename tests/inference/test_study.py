"""Predictions for whole studies: BIDS in, BIDS derivatives out."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import pytest
from typer.testing import CliRunner

from dmri_monai.cli import app
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.study import own_share
from dmri_monai.inference.study_files import made_by, meaning, places_of
from dmri_monai.inference.study_pages import write_study_index, write_subject_page
from dmri_monai.phantom import write_dataset
from dmri_monai.tasks import TASKS
from tests.small_models import save_model

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


def test_prediction_that_another_machine_left_half_renamed_is_made_again(study, checkpoint, tmp_path):
    run(study, "-o", tmp_path, "--checkpoint", checkpoint, "--no-report")
    folder, process = tmp_path / "sub-03" / "dwi", ".tmp-00000000-1-00000000."
    (folder / f"{process}nii.gz").write_bytes(b"new")
    names = {"nii.gz": "sub-03_desc-tissue_dseg.nii.gz", "json": "sub-03_desc-tissue_dseg.json"}
    renames = {f"{process}{ending}": name for ending, name in names.items()}
    note = json.dumps({"renames": renames, "gone": []})
    (folder / f"{process}.renames").write_text(note, encoding="utf-8")
    for expected in ("1 predicted, 1 resumed, 1 failed", "2 resumed, 1 failed"):
        again = run(study, "-o", tmp_path, "--checkpoint", checkpoint, "--no-report", "--resume")
        assert expected in again.output
    assert nibabel.load(folder / names["nii.gz"]).ndim == 3


def test_prediction_of_other_weights_is_not_taken_for_done(study, checkpoint, tmp_path):
    run(study, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--no-report")
    other = save_model(tmp_path / "other.pt", l_max=2, order_scale=(1.0, 15.0))
    again = run(study, "-o", tmp_path / "out", "--checkpoint", other, "--no-report", "--resume")
    assert "2 predicted, 1 failed" in again.output


def test_prediction_of_other_settings_is_not_taken_for_done(study, checkpoint, tmp_path):
    own = ("--checkpoint", tmp_path / "own.pt", "--no-report")
    shutil.copy(checkpoint, tmp_path / "own.pt")
    spec = ModelSpec.load(checkpoint.with_suffix(".json"))
    for depth, expected in (
        (None, "2 predicted, 1 failed"),
        (12.0, "2 predicted, 1 failed"),
        (12.0, "2 resumed"),
    ):
        spec.replace(body_mm=depth).save(tmp_path / "own.json")
        assert expected in run(study, "-o", tmp_path / "out", *own, "--resume").output


def test_two_workers_predict_the_same_maps(done, study, checkpoint, tmp_path):
    result = run(study, "-o", tmp_path, "--checkpoint", checkpoint, "--no-report", "--workers", "2")
    assert "2 predicted, 1 failed" in result.output
    for name in ("sub-01", "sub-03"):
        one, two = (
            (folder / name / "dwi" / f"{name}_desc-tissue_dseg.nii.gz").read_bytes()
            for folder in (done[1], tmp_path)
        )
        assert one == two


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def two_runs(study, tmp_path_factory):
    """One subject with two scans."""
    out = tmp_path_factory.mktemp("runs") / "study"
    shutil.copytree(study / "sub-01", out / "sub-01")
    (out / "dataset_description.json").write_text('{"Name": "two", "BIDSVersion": "1.10.0"}')
    folder = out / "sub-01" / "dwi"
    for path in sorted(folder.glob("sub-01_dwi.*")):
        for run_ in ("run-1", "run-2"):
            shutil.copy(path, folder / path.name.replace("sub-01_", f"sub-01_{run_}_"))
        path.unlink()
    return out


def test_page_of_a_subject_shows_all_its_scans_also_after_a_kill(two_runs, checkpoint, tmp_path):
    run(two_runs, "-o", tmp_path, "--checkpoint", checkpoint)
    page = tmp_path / "sub-01.html"
    whole = page.read_text(encoding="utf-8")
    assert [whole.count(f"<h2>sub-01_run-{n}: Tissue") for n in (1, 2)] == [1, 1]
    page.unlink()  # killed between the last map and the page
    again = run(two_runs, "-o", tmp_path, "--checkpoint", checkpoint, "--resume")
    assert "2 resumed" in again.output
    assert page.read_text(encoding="utf-8") == whole
    (tmp_path / "sub-01" / "dwi" / "sub-01_run-2_desc-tissue_dseg.json").unlink()  # killed between the scans
    run(two_runs, "-o", tmp_path, "--checkpoint", checkpoint, "--resume")
    assert page.read_text(encoding="utf-8") == whole


@pytest.mark.parametrize(
    "foreign",
    [{"Warnings": 5}, {"WindowDeviation": ["a"]}, {"Sources": 5}, {"Sources": {"a": 1}}, {"Sources": []}],
    ids=str,
)
def test_entries_of_a_sidecar_that_are_not_ours_end_neither_page_nor_index(tmp_path, study, done, foreign):
    out = tmp_path / "out"
    shutil.copytree(done[1], out)
    sidecar = out / "sub-01" / "dwi" / "sub-01_desc-tissue_dseg.json"
    sidecar.write_text(
        json.dumps(json.loads(sidecar.read_text(encoding="utf-8")) | foreign), encoding="utf-8"
    )
    scan = study / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    (out / "sub-01.html").unlink()
    write_subject_page([scan], study, out, {})
    write_study_index(out, study, [scan], ["tissue"], {})
    assert (out / "sub-01.html").is_file()
    assert "sub-01_dwi.nii.gz" in (out / "index.html").read_text(encoding="utf-8")


def test_index_has_a_row_for_every_scan_and_says_what_is_missing(done):
    _, out = done
    index = (out / "index.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr>\s*<td>.*?</tr>", index, flags=re.DOTALL)
    assert len(rows) == len(SCANS)
    assert [name for name in SCANS if f'href="./{name}.html"' in index] == ["sub-01", "sub-03"]


@pytest.mark.parametrize(
    ("scan", "names"),
    {
        "raw": (
            "sub-01_acq-a_dwi.nii.gz",
            (
                "sub-01_acq-a_desc-tissue_dseg",
                "sub-01_acq-a_label-lesion_mask",
                "sub-01_acq-a_model-dmrimonai_param-fibrecount_dwimap",
                "sub-01_acq-a_model-dmrimonai_param-direction_dwimap",
                "sub-01_acq-a_model-dmrimonai_param-fod_dwimap",
                "sub-01_acq-a_desc-tissue_probseg",
            ),
        ),
        "preprocessed": (
            "sub-01_space-T1w_desc-preproc_dwi.nii.gz",
            (
                "sub-01_space-T1w_desc-preproctissue_dseg",
                "sub-01_space-T1w_label-lesion_desc-preproc_mask",
                "sub-01_space-T1w_model-dmrimonai_desc-preproc_param-fibrecount_dwimap",
                "sub-01_space-T1w_model-dmrimonai_desc-preproc_param-direction_dwimap",
                "sub-01_space-T1w_model-dmrimonai_desc-preproc_param-fod_dwimap",
                "sub-01_space-T1w_desc-preproctissue_probseg",
            ),
        ),
    }.values(),
    ids=["raw", "preprocessed"],
)
def test_names_hold_each_entity_once_in_the_order_of_bids(scan, names, tmp_path):
    source = tmp_path / "study"
    path = source / "sub-01" / "dwi" / scan
    found = [places_of(path, source, tmp_path / "out", task)["sidecar"] for task in TASKS]
    assert [place.stem for place in found] == list(names)
    assert all(place.parent == tmp_path / "out" / "sub-01" / "dwi" for place in found)


def test_root_of_the_derivatives_explains_them(done):
    _, out = done
    assert (out / "desc-tissue_dseg.tsv").read_text().splitlines()[:2] == ["index\tname", "0\tbackground"]
    assert "index.html" in (out / "README.md").read_text()
    assert "*_dwimap.nii.gz" in (out / ".bidsignore").read_text().splitlines()


def test_sidecars_say_what_bids_asks_of_each_map():
    scan = "bids:raw:sub-01/dwi/sub-01_dwi.nii.gz"
    said = {task: meaning(task, scan) for task in TASKS}
    assert all({"Description", "Units"} <= set(record) for record in said.values())
    assert said["tissue"]["SpatialReference"] == scan
    assert said["lesion"]["Type"] == "Lesion"
    assert made_by("own.pt")["Model"]["Parameters"] == {"Weights": "own.pt"}
    assert said["orientation"]["OrientationEncoding"] == {
        "Type": "unit3vector",
        "EncodingAxis": 3,
        "Reference": "xyz",
        "AntipodalSymmetry": True,
    }


def test_every_map_has_a_sidecar_of_its_own_and_counts_as_one_prediction(study, tmp_path):
    model = save_model(tmp_path / "fod.pt", "fod", architecture="any", size=["4x0e", "4x0e"], slots=1)
    out = tmp_path / "out"
    run(study, "-o", out, "--checkpoint", model, "--ensemble", "flips", "--no-report")
    folder, stem = out / "sub-01" / "dwi", "sub-01_model-dmrimonai_param-{}_dwimap"
    kinds = ("fod", "fodpeaks", "fodcount", "fodspread")
    assert {path.name.split(".")[0] for path in folder.glob("*.nii.gz")} == {stem.format(k) for k in kinds}
    said = {
        kind: json.loads((folder / f"{stem.format(kind)}.json").read_text(encoding="utf-8")) for kind in kinds
    }
    for record in said.values():
        assert {"Description", "Units", "GeneratedBy", "ModelSHA256", "SourcesSHA256"} <= set(record)
        assert record["Sources"] == ["bids:raw:sub-01/dwi/sub-01_dwi.nii.gz"]
        assert record["Model"]["Parameters"] == {"Weights": "fod.pt"}
    encodings = {kind: record.get("OrientationEncoding", {}).get("Type") for kind, record in said.items()}
    assert encodings == {"fod": "sh", "fodpeaks": "3vector", "fodcount": None, "fodspread": None}
    assert len({record["Description"] for record in said.values()}) == len(kinds)
    index = (out / "index.html").read_text(encoding="utf-8")
    assert "fod" in index
    assert "fod, " not in index  # as it would read if a map beside the density were a prediction of its own


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
