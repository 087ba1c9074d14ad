"""The `dmri-monai` command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from monai.data import MetaTensor
from typer.testing import CliRunner

import dmri_monai
from dmri_monai.cli import app
from dmri_monai.cli.command import Bvecs
from dmri_monai.cli.simulation_commands import Scheme
from dmri_monai.gradients import B0_THRESHOLD, GradientTable
from dmri_monai.io import read_dwi, write_dwi, write_nifti
from dmri_monai.io.sidecars import BvecsChoice
from dmri_monai.phantom.schemes import Preset
from tests.check.fibres import ring_scan
from tests.conftest import STANDARD_AFFINES
from tests.report.scenes import blob_at
from tests.small_models import save_model

AFFINE = STANDARD_AFFINES["oblique-left-iso2"]


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A clean scan with fibres."""
    path = tmp_path_factory.mktemp("scan") / "sub-01_dwi.nii.gz"
    write_dwi(path, *with_affine(*ring_scan(AFFINE)))
    return path


def with_affine(image, table):
    return MetaTensor(image, affine=AFFINE), table


def test_help_imports_neither_torch_nor_monai():
    code = (
        "import sys, dmri_monai.cli as c\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(c.app, ['--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'monai', 'mlflow', 'matplotlib', 'numpy') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


def test_version_is_printed():
    assert run("--version").output.strip() == dmri_monai.__version__


@pytest.mark.parametrize(
    "command", [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
)
def test_every_command_explains_itself(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_check_of_a_good_scan_ends_with_zero(scan):
    result = run("check", scan)
    assert result.exit_code == 0, result.output
    assert "30 at b = 1000 s/mm2" in result.output
    assert "left-handed" in result.output
    assert "b-vectors    consistent" in result.output


def test_check_says_which_axis_is_flipped_and_ends_with_one(scan, tmp_path):
    image, table = read_dwi(scan)
    flipped = table.to_fsl(AFFINE) * table.bvecs.new_tensor([1.0, -1.0, 1.0])
    write_dwi(tmp_path / "f.nii.gz", image, GradientTable.from_fsl(table.bvals, flipped, AFFINE))
    result = run("check", tmp_path / "f.nii.gz", "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    found = [f for f in content["findings"] if f["severity"] != "note"]
    assert [f["code"] for f in found] == ["bvecs-flipped-y"]
    assert found[0]["message"].startswith("your b-vectors look flipped in y")
    assert content["coherence"]["verdict"] == "wrong"


def test_check_takes_the_convention_of_the_vectors(scan, tmp_path):
    """A right-handed scan whose `.bvec` follows DIPY's convention is flipped under FSL's."""
    image, table = read_dwi(scan)
    affine = STANDARD_AFFINES["oblique-right-iso2"]
    turned = MetaTensor(image.as_tensor().flip(1), affine=mirrored(image.affine, image.shape[1]))
    path = tmp_path / "f.nii.gz"
    write_dwi(path, turned, table)
    assert (torch.linalg.det(turned.affine[:3, :3]) > 0) == (torch.linalg.det(affine[:3, :3]) > 0)
    assert run("check", path).exit_code == 0
    along = table.in_voxel_frame(turned.affine)
    (tmp_path / "f.bvec").write_text("\n".join(" ".join(map(str, row)) for row in along.T.tolist()))
    assert run("check", path).exit_code == 1
    assert run("check", path, "--bvecs", "dipy").exit_code == 0


def mirrored(affine, n):
    """Affine of the image stored the other way round along its first axis."""
    flip = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    flip[0, 3] = n - 1
    return affine.double() @ flip


def test_check_takes_the_b0_threshold_and_names_it(scan, tmp_path):
    image, table = read_dwi(scan)
    path = tmp_path / "f.nii.gz"
    write_dwi(path, image, table)
    bvals = [100 if b == 0 else int(b) for b in table.bvals.tolist()]
    (tmp_path / "f.bval").write_text(" ".join(map(str, bvals)))
    result = run("check", path)
    assert result.exit_code == 2
    assert "lowest b is 100, above b0_threshold 50; give b0_threshold=100" in result.stderr
    assert run("check", path, "--b0-threshold", "100").exit_code == 0


@pytest.mark.parametrize("command", ["check", "fix", "labels"])
def test_conventions_of_the_command_line_are_those_of_the_reader(command):
    assert get_args(Bvecs) == get_args(BvecsChoice)
    assert B0_THRESHOLD == 50
    assert all(option in run(command, "--help").output for option in ("--bvecs", "--b0-threshold"))


def test_fix_mends_what_check_found_and_says_so(scan, tmp_path):
    image, table = read_dwi(scan)
    flipped = table.to_fsl(AFFINE) * table.bvecs.new_tensor([1.0, -1.0, 1.0])
    write_dwi(tmp_path / "f.nii.gz", image, GradientTable.from_fsl(table.bvals, flipped, AFFINE))
    result = run("fix", tmp_path / "f.nii.gz", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "b-vectors mended: they looked flipped in y" in result.stderr
    assert run("check", tmp_path / "out" / "f_dwi.nii.gz").exit_code == 0
    again = run("fix", tmp_path / "out" / "f_dwi.nii.gz", "-o", tmp_path / "twice")
    assert again.exit_code == 0
    assert "nothing to mend" in again.stderr
    assert not (tmp_path / "twice").exists()


def test_fix_of_volumes_in_another_order_is_refused(scan, tmp_path):
    image, table = read_dwi(scan)
    write_dwi(tmp_path / "r.nii.gz", image.flip(0), table)
    result = run("fix", tmp_path / "r.nii.gz", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "not sure how to mend this: volumes in another order" in result.stderr
    assert not (tmp_path / "out").exists()


def test_check_writes_the_sphere_and_a_report(scan, tmp_path):
    result = run("check", scan, "--sphere", tmp_path / "s.png", "--report", tmp_path / "r.html")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert "nothing looks wrong" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "missing.nii.gz"], "missing.nii.gz"),
        (["report"], "either a folder of outputs with --data, or --image"),
        (["report", "somewhere"], "needs --data"),
        (["report", "somewhere", "--data", "."], "no *_dseg.nii.gz in somewhere"),
        (["runs", "nowhere.db"], "no MLflow store at nowhere.db"),
        (["phantom", "--out", ".", "--subjects", "1"], "not empty"),
        (["artifacts"], "give --list"),
        (["labels", "missing.nii.gz", "--out", "x"], "missing.nii.gz"),
        (["predict", "missing.nii.gz", "-o", "x"], "missing.nii.gz"),
        (["predict", "missing.nii.gz", "-o", "x", "--task", "tumour"], "no released model for task 'tumour'"),
        (["predict", "a.nii.gz", "-o", "x", "--checkpoint", "mine.pt"], "mine.pt does not exist"),
        (["export", "mine.pt", "-o", "x.ts"], "mine.pt does not exist"),
        (["export", "tissue", "-o", "x.onnx"], "end in .ts, got x.onnx"),
        (["export-bundle", "tumour", "-o", "x"], "none of the released models (crossings, fod, fractions"),
        (["export-bundle", "pretrained", "-o", "x"], "no task yet"),
        (["export-bundle", "tissue", "-o", "."], "not empty"),
        (["label-bundle", "orientation", "-o", "x"], "draws classes"),
        (["label-bundle", "crossings", "-o", "x"], "has learned fod"),
        (["labels", "a.nii", "b.nii", "--out", "x", "--mask", "m.nii"], "single scan, got 2 scans"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, list) else "",
)
def test_a_users_mistake_is_one_line_on_stderr_and_code_two(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command", ["export", "export-bundle", "fix", "label-bundle", "label-studies", "predict"]
)
def test_where_to_write_is_an_option_and_its_lack_is_named(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(command, "tissue", "somewhere")
    assert result.exit_code == 2
    assert "Missing option '--out' / '-o'" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["labels", "phantom", "report"])
def test_where_to_write_has_its_short_name_everywhere(command):
    assert "-o, --out" in run(command, "--help").stdout


@pytest.mark.parametrize("command", [["phantom", "--out", "x"], ["predict", "x.nii.gz", "-o", "x"]])
def test_a_device_that_there_is_not_is_named(command):
    result = run(*command, "--device", "cuda:99")
    assert result.exit_code == 2
    assert "'cuda:99' cannot be used" in result.stderr


def test_report_of_one_scan_with_labels(scan, tmp_path):
    labels = tmp_path / "labels.nii.gz"
    write_nifti(labels, blob_at((0, 0, 0), AFFINE).byte(), AFFINE)
    (tmp_path / "names.tsv").write_text("index\tname\n1\tblob\n")
    out = tmp_path / "r.html"
    result = run(
        "report", "--image", scan, "--prediction", labels, "--truth", labels,
        "--names", tmp_path / "names.tsv", "--out", out, "--neurological",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    html = out.read_text()
    assert "Dice blob" in html
    assert "Neurological view: the patient's left is on the left" in html


def test_labels_are_written_as_derivatives(scan, tmp_path):
    result = run("labels", scan, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    written = [Path(line) for line in result.stdout.split()]
    assert sorted(p.name.split("_")[-1] for p in written) == ["FA.nii.gz", "npeaks.nii.gz", "peaks.nii.gz"]
    assert all(p.is_file() for p in written)


def test_labels_of_all_tissues_need_several_shells(scan, tmp_path):
    result = run("labels", scan, "--out", tmp_path / "out", "--method", "msmt")
    assert result.exit_code == 2
    assert "needs two, use method 'csd'" in result.output


def test_artifacts_lists_the_presets():
    result = run("artifacts", "--list")
    assert result.exit_code == 0, result.output
    for preset in ("light", "normal", "strong"):
        assert f"{preset}:" in result.output
    assert "slice_dropout" in result.output


def test_phantom_offers_every_gradient_scheme():
    assert get_args(Scheme) == get_args(Preset)
    assert run("phantom", "--out", "x", "--scheme", "spiral").exit_code == 2


@pytest.mark.parametrize(("nilearn", "anatomy"), [(True, "mni152"), (False, "procedural")])
def test_phantom_falls_back_where_nilearn_is_absent(tmp_path, monkeypatch, nilearn, anatomy):
    asked = {}
    monkeypatch.setattr(
        "dmri_monai.cli.simulation_commands.find_spec", lambda name: object() if nilearn else None
    )
    monkeypatch.setattr(
        "dmri_monai.phantom.write_dataset", lambda out, **options: asked.update(options) or out
    )
    result = run("phantom", "--out", tmp_path, "--anatomy", "auto")
    assert result.exit_code == 0
    assert asked["anatomy"] == anatomy
    assert f"anatomy: {anatomy}" in result.output


def test_phantom_writes_a_scan_that_check_reads(tmp_path):
    result = run("phantom", "--out", tmp_path / "bids", "--subjects", 1, "--seed", 3,
                 "--shape", 16, 18, 16, "--spacing", 8, 8, 8, "--scheme", "clinical-32")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "1 subject in" in result.stdout
    image, table = read_dwi(tmp_path / "bids" / "sub-01" / "dwi" / "sub-01_dwi.nii.gz")
    assert image.shape[1:] == (16, 18, 16)
    assert sum(len(s.indices) for s in table.shells()) == 32
    checked = run("check", tmp_path / "bids" / "sub-01" / "dwi" / "sub-01_dwi.nii.gz")
    assert "voxel size   8 x 8 x 8 mm" in checked.stdout
    assert "your b-vectors look" not in checked.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained model of few weights."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    return save_model(path, architecture="plain", network_options={"filters": 4}, spacing_mm=(2.0, 2.0, 2.0))


def test_predict_writes_what_it_prints_and_a_report_on_request_alone(scan, model, tmp_path):
    options = ["--checkpoint", model, "--device", "cpu", "-o", tmp_path / "out"]
    result = run("predict", scan, *options)
    assert result.exit_code == 0, result.output
    assert [Path(line).name for line in result.stdout.split()] == ["sub-01_dseg.nii.gz", "sub-01_dseg.json"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["sub-01_dseg.json", "sub-01_dseg.nii.gz"]
    result = run("predict", scan, *options, "--report", "--ensemble", "flips")
    assert result.exit_code == 0, result.output
    maps = {
        f"sub-01_{name}.{ending}" for name in ("dseg", "dseguncertainty") for ending in ("nii.gz", "json")
    }
    names = {*maps, "sub-01_dseg.html"}
    assert {Path(line).name for line in result.stdout.split()} == names
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_predict_leaves_a_label_made_by_hand_alone_unless_told_otherwise(scan, model, tmp_path):
    label = tmp_path / "sub-01_dseg.nii.gz"
    label.write_bytes(b"by hand")
    options = ["--checkpoint", model, "--device", "cpu", "-o", tmp_path]
    result = run("predict", scan, *options)
    assert result.exit_code == 2
    assert f"{label} exists and was not written by a prediction" in result.stderr
    assert label.read_bytes() == b"by hand"
    assert run("predict", scan, *options, "--overwrite").exit_code == 0
    assert label.read_bytes() != b"by hand"


def test_exported_bundle_is_where_the_command_says(model, tmp_path):
    result = run("export-bundle", model, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()) == tmp_path / "out"
    assert (tmp_path / "out" / "models" / "model.pt").is_file()


def test_warnings_are_one_line_each_on_stderr(scan, tmp_path):
    """Python's own form has a second line, with the source code that warned."""
    image, table = read_dwi(scan)
    path = tmp_path / "two\nlines.nii.gz"
    write_dwi(path, image, table)
    bvec = path.with_name("two\nlines.bvec")
    rows = [[float(v) * 1.02 for v in line.split()] for line in bvec.read_text().splitlines()]
    bvec.write_text("\n".join(" ".join(map(str, row)) for row in rows))
    (tmp_path / "two\nlines.json").write_text('{"PhaseEncodingDirection": "AP"}')
    result = run("check", path)
    lines = result.stderr.splitlines()
    assert len(lines) == 2, result.stderr
    assert all(line.startswith("warning: ") for line in lines), lines
    assert "b-vectors renormalised" in result.stderr
    assert "PhaseEncodingDirection is 'AP'" in result.stderr


def test_what_is_left_out_of_a_study_is_a_warning_line(scan, tmp_path):
    image, table = read_dwi(scan)
    for name in ("sub-01", "sub-02"):
        write_dwi(tmp_path / f"{name}_dwi.nii.gz", image, table)
    (tmp_path / "sub-02_dwi.bval").write_text(" ".join(["0"] * len(table)))
    result = run(
        "predict",
        tmp_path,
        "-o",
        tmp_path / "out",
        "--checkpoint",
        save_model(tmp_path / "model.pt"),
        "--no-report",
        "--device",
        "cpu",
    )
    assert result.exit_code == 0, result.output
    said = [line for line in result.stderr.splitlines() if "no diffusion weighting" in line]
    assert len(said) == 1
    assert said[0].startswith(f"warning: {tmp_path / 'sub-02_dwi.nii.gz'} has no diffusion weighting")
