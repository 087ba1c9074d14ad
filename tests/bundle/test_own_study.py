"""The tutorial of a real study: few labels, fine-tuning, evaluation, and the rest predicted."""

from __future__ import annotations

import ast
import csv
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow
from typer.testing import CliRunner

from dmri_monai.cli import app
from dmri_monai.inference.weights import save_model

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorials" / "own-study.md"
LABELLED = ("sub-01", "sub-02", "sub-03")


@pytest.fixture(scope="module")
def few_labels(dataset_dir, tmp_path_factory):
    """The phantom's study with tissue labels for three of its five subjects."""
    out = tmp_path_factory.mktemp("few") / "study"
    shutil.copytree(dataset_dir, out)
    for label in out.rglob("*_dseg.nii.gz"):
        if not label.name.startswith(LABELLED):
            label.unlink()
    return out


def test_few_labels_of_a_study_are_trained_on_and_the_rest_predicted(
    prepare, few_labels, pretrained, tmp_path
):
    split = {"train": 0.34, "val": 0.33, "test": 0.33}
    own = {"dataset_dir": str(few_labels), "labelled_only": True, "split": split}
    weights = str(pretrained / "model.pt")
    prepare("train", **own, output_dir=str(tmp_path / "tuned"), pretrained=weights).run()
    checkpoint = str(tmp_path / "tuned" / "model.pt")
    prepare("evaluate", **own, output_dir=str(tmp_path / "evaluation"), checkpoint=checkpoint).run()
    with (tmp_path / "evaluation" / "dice.csv").open() as file:
        assert {row["subject"] for row in csv.DictReader(file)} == {"0"}
    out = tmp_path / "predicted"
    command = ["predict", str(few_labels), "-o", str(out), "--checkpoint", checkpoint, "--device", "cpu"]
    done = CliRunner().invoke(app, [*command, "--no-report"])
    assert done.exit_code == 0, done.output
    assert len(list(out.rglob("*_dseg.nii.gz"))) == 5


def test_scan_without_a_label_is_an_error_where_it_was_not_said(prepare, few_labels, tmp_path):
    workflow = prepare("train", dataset_dir=str(few_labels), output_dir=str(tmp_path))
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    assert "no sub-04_dseg.nii.gz" in str(error.value.__cause__)


def console_blocks() -> list[str]:
    return re.findall(r"^```console\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def workflow_of(command: str, **override: object) -> ConfigWorkflow:
    """The initialised workflow of a `monai.bundle run` command as it stands on the page."""
    words = shlex.split(command)
    options = dict(zip(words[5::2], words[6::2], strict=True))
    settings = {name.removeprefix("--"): value for name, value in options.items()}
    files = ast.literal_eval(settings.pop("config_file"))
    if "split" in settings:
        settings["split"] = ast.literal_eval(settings["split"])
    settings["labelled_only"] = settings["labelled_only"] == "true"
    workflow = ConfigWorkflow(
        config_file=files,
        meta_file="bundle/configs/metadata.json",
        logging_file=False,
        workflow_type="train" if words[4] == "training" else "infer",
        **{**settings, "device": "cpu", "mlflow": False, **override},
    )
    workflow.initialize()
    return workflow


def test_released_pretraining_is_tested_on_subjects_that_the_fine_tuning_has_not_seen(
    dataset_dir, tmp_path, monkeypatch
):
    (tmp_path / "my_bids").symlink_to(dataset_dir)
    for name in ("bundle", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    commands = console_blocks()[0].replace("\\\n", " ").splitlines()
    training = workflow_of(commands[0])
    known = training.parser.get_parsed_content("data")
    model = training.parser.get_parsed_content("model")
    path = Path("runs/tissue/model.pt")
    path.parent.mkdir(parents=True)
    save_model(training.parser.get_parsed_content("network"), path, model)
    tested = workflow_of(commands[1]).parser.get_parsed_content("data")
    assert {item["subject"] for item in tested} == {item["subject"] for item in known["test"]}
    assert len(known["train"]) == 3
    assert len(tested) == 1


@pytest.mark.slow
def test_example_of_the_tutorial_runs_on_the_real_head(shared_dir, tmp_path):
    """As it stands, but for the number of epochs."""
    if not (shared_dir / "data" / "real").is_dir():
        pytest.skip(f"needs the real scans in {shared_dir / 'data' / 'real'}")
    _, script = console_blocks()
    for name in ("bundle", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "real").symlink_to(shared_dir / "data" / "real")
    short = script.replace(
        "--max_epochs 60 --val_interval 60", "--max_epochs 2 --val_interval 2 --device cpu"
    )
    assert short != script
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", short],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    with (tmp_path / "runs" / "right" / "dice_summary.csv").open() as file:
        dice = {row["method"]: float(row["mean"]) for row in csv.DictReader(file)}
    assert 0 < dice["network"] < 1
    assert 0.2 < dice["compared network"] < 1  # the released model, whatever was trained
