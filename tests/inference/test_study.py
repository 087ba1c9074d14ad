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
from dmri_monai.inference.study_files import made_by, meaning, places_of, relative_to
from dmri_monai.inference.study_pages import write_study_index, write_subject_page
from dmri_monai.io import subjects
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
    (tmp_path / "sub-03" / "dwi" / "sub-03_desc-tissue_dseg.nii.gz").unlink()  # half done
    again = run(study, "-o", tmp_path, "--checkpoint", checkpoint, "--no-report", "--resume")
    assert "1 predicted, 1 resumed, 1 failed" in again.output
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("killed", ["first", "second"])
def test_prediction_that_another_machine_left_half_renamed_is_made_again(study, checkpoint, tmp_path, killed):
    run(study, "-o", tmp_path, "--checkpoint", checkpoint, "--no-report")
    folder, process = tmp_path / "sub-03" / "dwi", ".tmp-00000000-1-00000000."
    names = {"nii.gz": "sub-03_desc-tissue_dseg.nii.gz", "json": "sub-03_desc-tissue_dseg.json"}
    if killed == "first":  # its map has its name, its sidecar has not
        (folder / names["json"]).rename(folder / f"{process}json")
    else:
        (folder / f"{process}nii.gz").write_bytes(b"new")
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


def slurm(task, first, last, step, count):
    """The environment of one task of an array."""
    names = {"ID": task, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "abcde"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "bd"),
        (slurm(3, 1, 3, 1, 3), "c"),
        (slurm(2, 0, 8, 2, 5), "b"),
        (slurm(8, 0, 8, 2, 5), "e"),
        (slurm(7, 1, 8, 3, 3), "c"),
    ],
    ids=["alone", "torchrun", "slurm", "slurm by 2", "last of slurm by 2", "the last step ends early"],
)
def test_shares_of_all_processes_are_the_whole(environment, expected):
    assert "".join(own_share("abcde", environment)) == expected


@pytest.mark.parametrize(
    "environment", [slurm(7, 3, 7, 1, 2), slurm(4, 0, 9, 1, 3)], ids=["--array=3,7", "--array=0,4,9"]
)
def test_an_array_with_gaps_is_refused_and_not_a_part_of_the_study_left_out(
    environment, study, checkpoint, tmp_path, monkeypatch
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = run(study, "-o", tmp_path / "out", "--checkpoint", checkpoint)
    assert result.exit_code == 2
    assert "--array=0-9" in result.output
    assert not (tmp_path / "out").exists()


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
    for file in (tmp_path / "sub-01" / "dwi").glob("sub-01_run-2_*"):  # killed between the scans
        file.unlink()
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


@pytest.mark.parametrize("more", [(), ("--resume",)], ids=["", "resume"])
def test_label_drawn_by_hand_is_not_replaced(study, checkpoint, tmp_path, more):
    own = tmp_path / "sub-01" / "dwi" / "sub-01_desc-tissue_dseg.nii.gz"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    result = run(study, "-o", tmp_path, "--checkpoint", checkpoint, "--no-report", *more)
    assert own.read_bytes() == b"mine"
    assert "1 predicted, 2 failed" in result.output


@pytest.fixture
def subject(study, tmp_path):
    """A data set of one subject, to be changed."""
    root = tmp_path / "study"
    shutil.copytree(study / "sub-01", root / "sub-01")
    shutil.copy(study / "dataset_description.json", root)
    return root


def linked_subjects(study, tmp_path, layout):
    """A data set whose folders or files are links to a store elsewhere, and the names of what a study makes of it."""
    root, store = tmp_path / "study", tmp_path / "store"
    for number, name in enumerate(("sub-01", "sub-03")):
        dwi = study / name / "dwi"
        if layout == "hcp":
            folder = store / f"disk{number}" / "x"
            (folder / "T1w" / "Diffusion").mkdir(parents=True)
            endings = {"data.nii.gz": ".nii.gz", "bvals": ".bval", "bvecs": ".bvec"}
            for new, old in endings.items():
                shutil.copy(dwi / f"{name}_dwi{old}", folder / "T1w" / "Diffusion" / new)
            root.mkdir(exist_ok=True)
            (root / f"10030{number}").symlink_to(folder)
        else:
            (root / name / "dwi").mkdir(parents=True)
            shutil.copy(study / "dataset_description.json", root)
            for number, file in enumerate(dwi.glob(f"{name}_dwi.*")):  # as git-annex keeps them
                held = (
                    root / ".git" / "annex" / "objects" / name / str(number) / f"MD5E-{number}{file.suffix}"
                )
                held.parent.mkdir(parents=True)
                shutil.copy(file, held)
                (root / name / "dwi" / file.name).symlink_to(held)
    if layout == "hcp":
        return root, [
            "100300/T1w/Diffusion/data_desc-tissue_dseg",
            "100301/T1w/Diffusion/data_desc-tissue_dseg",
        ]
    return root, [f"{name}/dwi/{name}_desc-tissue_dseg" for name in ("sub-01", "sub-03")]


@pytest.mark.parametrize("layout", ["hcp", "annex"])
def test_a_scan_behind_a_link_is_predicted_where_the_link_lies(study, checkpoint, tmp_path, layout):
    root, expected = linked_subjects(study, tmp_path, layout)
    out = tmp_path / "out"
    result = run(root, "-o", out, "--checkpoint", checkpoint)
    assert "2 predicted" in result.output
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*_dseg.nii.gz"))
    assert found == [f"{name}.nii.gz" for name in expected]
    pages = sorted(path.stem for path in out.glob("*.html"))
    assert pages == sorted([*(name.split("/")[0] for name in expected), "index"])
    for name in expected:
        record = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        (source,) = record["Sources"]
        assert (root / source.removeprefix("bids:raw:")).is_file()


@pytest.mark.parametrize("spelling", ["resolved", "dots", "link"])
def test_however_the_study_is_named_its_maps_lie_in_the_same_places(study, tmp_path, spelling):
    link = tmp_path / "link"
    link.symlink_to(study)
    root = {"resolved": study.resolve(), "dots": link / "sub-01" / "..", "link": link}[spelling]
    scan = study.resolve() / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
    assert relative_to(scan, root) == relative_to(root / "sub-01" / "dwi" / scan.name, study)
    assert relative_to(scan, root) == "sub-01/dwi/sub-01_dwi.nii.gz"
    assert relative_to(tmp_path / "elsewhere_dwi.nii.gz", root) == "elsewhere_dwi.nii.gz"


@pytest.mark.parametrize("other", ["case_dwi.nii.gz", "case.nii"])
def test_two_scans_of_one_name_are_refused_before_any_work(study, checkpoint, tmp_path, other):
    folder, out = tmp_path / "plain", tmp_path / "out"
    folder.mkdir()
    dwi = study / "sub-01" / "dwi"
    for name in ("case.nii.gz", other):
        stem = name.removesuffix(".gz").removesuffix(".nii")
        nibabel.load(dwi / "sub-01_dwi.nii.gz").to_filename(folder / name)
        for ending in (".bval", ".bvec"):
            shutil.copy(dwi / f"sub-01_dwi{ending}", folder / f"{stem}{ending}")
    result = run(folder, "-o", out, "--checkpoint", checkpoint)
    assert result.exit_code == 2
    assert "case.nii.gz" in result.output
    assert other in result.output
    assert not out.exists()


def table_of(subject):
    (sidecar,) = subject.rglob("*_dseg.json")
    return json.loads(sidecar.read_text(encoding="utf-8"))["TableSHA256"]


def turned_table(subject):
    """Writes eddy's b-vectors, other than those of the `.bvec`."""
    bvec = subject / "sub-01" / "dwi" / "sub-01_dwi.bvec"
    rows = bvec.read_text(encoding="ascii").splitlines()
    bvec.with_name("sub-01_dwi.eddy_rotated_bvecs").write_text("\n".join([rows[1], rows[0], rows[2]]))
    return bvec


@pytest.mark.parametrize("more", [("--bvecs", "eddy"), ("--ensemble", "flips"), ("--b0-threshold", "60")])
def test_a_prediction_under_other_options_is_not_taken_for_done(subject, checkpoint, tmp_path, more):
    turned_table(subject)
    options = (subject, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--no-report", "--resume")
    assert "1 predicted" in run(*options).output
    assert "1 resumed" in run(*options).output
    before = table_of(tmp_path / "out")
    assert "1 predicted" in run(*options, *more).output
    assert (table_of(tmp_path / "out") != before) == ("eddy" in more)
    assert "1 resumed" in run(*options, *more).output
    assert "1 predicted" in run(*options).output


def test_changed_vectors_of_eddy_are_predicted_anew(subject, checkpoint, tmp_path):
    bvec = turned_table(subject)
    options = (subject, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--no-report", "--resume")
    assert "1 predicted" in run(*options, "--bvecs", "eddy").output
    before = table_of(tmp_path / "out")
    bvec.with_name("sub-01_dwi.eddy_rotated_bvecs").write_text(bvec.read_text(encoding="ascii"))
    assert "1 predicted" in run(*options, "--bvecs", "eddy").output
    assert table_of(tmp_path / "out") != before


def test_a_study_with_eddys_vectors_alone_is_read(subject, checkpoint, tmp_path):
    bvec = turned_table(subject)
    bvec.unlink()
    options = (subject, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--no-report")
    assert "1 predicted" in run(*options, "--bvecs", "eddy").output
    assert subjects(subject, {"all": 1.0})["all"]
    refused = run(*options)
    assert "1 failed" in refused.output
    assert "bvecs='eddy'" in refused.output


@pytest.fixture
def both_ways(study, tmp_path):
    """A plain folder with a scan of each phase-encoding direction."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for direction in ("AP", "PA"):
        for file in (study / "sub-01" / "dwi").glob("sub-01_dwi.*"):
            shutil.copy(file, folder / f"sub-01_dir-{direction}_dwi{''.join(file.suffixes)}")
    return folder


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(["dir=AP"], ["AP"]), (["dir=AP", "dir=PA"], ["AP", "PA"]), (["dir=AP", "sub=1"], ["AP"])],
    ids=str,
)
def test_filters_of_the_command_hold_in_any_folder(both_ways, checkpoint, tmp_path, wanted, expected):
    options = [part for one in wanted for part in ("--filter", one)]
    run(both_ways, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--no-report", *options)
    assert maps(tmp_path / "out") == [f"sub-01_dir-{way}_desc-tissue_dseg.nii.gz" for way in expected]


def test_filters_that_nothing_passes_are_an_error(both_ways, checkpoint, tmp_path):
    result = run(both_ways, "-o", tmp_path / "out", "--checkpoint", checkpoint, "--filter", "run=7")
    assert result.exit_code == 2
    assert "passes the filters {'run': ['7']}" in result.output
