"""A training that is killed in the middle of an epoch, and resumed, ends with the weights it would have had."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dmri_monai.failures import first_cause
from dmri_monai.inference.out_of_range import out_of_range
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.training_range import TrainingRange
from dmri_monai.scan import Scan

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "spacing_mm": "[6.0,6.0,6.0]",
    "crop_size": "[16,16,16]",
    "architecture": "plain",
    "network_options": "{'filters': 4}",
    "device": "cpu",
    "batch_size": "1",
    "max_epochs": "4",
    "mlflow": "False",
}


def command(dataset_dir, out, **settings):
    options = {**SETTINGS, "dataset_dir": dataset_dir, "output_dir": str(out), **settings}
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    config = str(ROOT / "bundle" / "configs" / "train.json")
    return [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", config, *arguments]


def kill_in_second_epoch(arguments, out):
    """Start a training, wait until the first epoch is saved and the second under way, and kill it."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (out / "last.pt").is_file():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "no checkpoint after 300 s"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_killed_and_resumed_training_is_bit_identical(prepare, dataset_dir, tmp_path, workers):
    common = {"dataset_dir": dataset_dir, "batch_size": 1, "max_epochs": 4, "cache_rate": 0.0}
    prepare("train", output_dir=str(tmp_path / "whole"), **common).run()
    kill_in_second_epoch(command(dataset_dir, tmp_path / "cut", num_workers=str(workers)), tmp_path / "cut")
    epoch = torch.load(tmp_path / "cut" / "last.pt", weights_only=True)["trainer"]["epoch"]
    assert 1 <= epoch < 4
    resumed = {"output_dir": str(tmp_path / "cut"), "resume": True, "num_workers": workers}
    prepare("train", **common, **resumed).run()
    for name in ("last.pt", "model.pt"):
        ends = [torch.load(tmp_path / f / name, weights_only=True) for f in ("whole", "cut")]
        networks = [end.get("network", end) for end in ends]
        torch.testing.assert_close(networks[1], networks[0], rtol=0, atol=0)


def test_another_seed_gives_other_weights(prepare, dataset_dir, tmp_path):
    """The control: the comparison above can fail."""
    ends = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        prepare("train", dataset_dir=dataset_dir, output_dir=str(out), seed=seed, max_epochs=1).run()
        ends.append(torch.load(out / "model.pt", weights_only=True)["head.weight"])
    assert (ends[0] - ends[1]).abs().max() > 1e-4


CHANGED = {
    "seed": ({"seed": 1}, "with the setting seed: 0, this run has 1"),
    "learning-rate": ({"learning_rate": 0.1}, "with the setting learning_rate: 0.001, this run has 0.1"),
    "augmentation": (
        {"train#preprocessing#transforms": "$@load"},
        "the setting train#preprocessing#transforms",
    ),
}


@pytest.fixture(scope="module")
def begun(prepare, dataset_dir, tmp_path_factory):
    """Data set of its own, and the folder of one epoch on it."""
    home = tmp_path_factory.mktemp("begun")
    shutil.copytree(dataset_dir, home / "data")
    prepare("train", dataset_dir=str(home / "data"), output_dir=str(home / "out"), max_epochs=1).run()
    return home / "data", home / "out"


@pytest.mark.parametrize("folder", ["trained", "pretrained"])
def test_training_writes_down_the_range_of_its_scans(request, folder):
    spec = ModelSpec.load(request.getfixturevalue(folder) / "model.json")
    low, high = spec.trained_on.directions
    assert 24 <= low < high <= 64  # of the phantom's three training scans
    assert spec.trained_on.voxel_mm == (6.0, 6.0)
    assert spec.trained_on.bval is None  # of named shells


def test_training_without_a_range_goes_on_and_gets_it(prepare, begun, tmp_path):
    """As trainings before this record were left."""
    data, out = begun
    out = Path(shutil.copytree(out, tmp_path / "out"))
    old = ModelSpec.load(out / "model.json")
    old.replace(trained_on={}).save(out / "model.json")
    state = torch.load(out / "last.pt", weights_only=True)
    state["best"]["metric"] = -1.0  # so that the next epoch is better
    torch.save(state, out / "last.pt")
    options = {"dataset_dir": str(data), "output_dir": str(out), "max_epochs": 3, "resume": True}
    prepare("train", **options, learning_rate=0.001).run()
    assert torch.load(out / "last.pt", weights_only=True)["trainer"]["epoch"] == 3
    assert ModelSpec.load(out / "model.json").trained_on == old.trained_on != TrainingRange()


def test_a_model_of_any_protocol_knows_its_b_values_and_warns_of_others(prepare, dataset_dir, tmp_path):
    settings = {"architecture": "any", "size": ["4x0e", "4x0e"], "network_options": {}, "max_epochs": 1}
    prepare("train", dataset_dir=dataset_dir, output_dir=str(tmp_path), fold=1, n_folds=5, **settings).run()
    spec = ModelSpec.load(tmp_path / "model.json")
    assert spec.trained_on.bval is not None
    bvals = torch.tensor([0.0, *[15000.0] * 30])
    bvecs = torch.nn.functional.normalize(torch.randn(31, 3), dim=1)
    affine = torch.diag(torch.tensor([20.0, 20.0, 20.0, 1.0]))
    strange = Scan.of_arrays(torch.ones(31, 4, 4, 4), bvals, bvecs, affine)
    found = " ".join(out_of_range(strange, spec))
    assert "15000 s/mm² b-values" in found
    assert "20 x 20 x 20 mm voxel size" in found


def refusal(workflow):
    """What the training says that does not begin; MONAI wraps it."""
    with pytest.raises(RuntimeError) as caught:
        workflow.run()
    return str(first_cause(caught.value))


@pytest.mark.parametrize(("change", "expected"), CHANGED.values(), ids=CHANGED.keys())
def test_resume_under_another_setting_is_refused_with_both_values(prepare, begun, change, expected):
    data, out = begun
    workflow = prepare("train", dataset_dir=str(data), output_dir=str(out), resume=True, **change)
    message = refusal(workflow)
    assert f"resume: {out}/last.pt was trained" in message
    assert expected in message


def test_resume_with_swapped_b_vectors_is_refused_with_both_digests(prepare, begun, tmp_path):
    data, out = begun
    moved = tmp_path / "moved"
    shutil.copytree(data, moved)
    for table in moved.rglob("*.bvec"):
        rows = table.read_text(encoding="utf-8").splitlines()
        table.write_text("\n".join([rows[1], rows[0], rows[2]]) + "\n", encoding="utf-8")
    workflow = prepare("train", dataset_dir=str(moved), output_dir=str(out), resume=True)
    expected = r"the file train 0 table sub-\d+_dwi.bvec: 'SHA-256 \w+', this run has 'SHA-256 \w+'"
    assert re.search(expected, refusal(workflow))


def test_what_may_change_changes_nothing_else(prepare, begun, tmp_path):
    data, out = begun
    shutil.copytree(out, tmp_path / "out")
    data = Path(shutil.copytree(data, tmp_path / "data"))
    options = {"num_workers": 1, "cache_rate": 0.5, "max_epochs": 2, "patience": 3, "resume": True}
    prepare("train", dataset_dir=str(data), output_dir=str(tmp_path / "out"), **options).run()
    assert torch.load(tmp_path / "out" / "last.pt", weights_only=True)["trainer"]["epoch"] == 2
