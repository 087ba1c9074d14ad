"""Two processes train as one does with a batch twice as large (gloo, on the CPU)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.weights import load_weights
from dmri_monai.phantom import write_dataset

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "device": "cpu",
    "size": "tiny",
    "spacing_mm": "[6.0,6.0,6.0]",
    "crop_size": "[16,16,16]",
    "max_epochs": "3",
    "split": "{'train':0.5,'val':0.25,'test':0.25}",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Eight heads: four to train on, two to validate."""
    out = tmp_path_factory.mktemp("parallel") / "data"
    write_dataset(out, subjects=8, seed=0, shape=(20, 24, 20), spacing_mm=(6.0, 6.0, 6.0), progress=False)
    return str(out)


def launch(processes, data, out, config="train", **settings):
    """A training with torchrun that has ended, one scan per batch and process of two."""
    configs = [f"bundle/configs/{config}.json", *(["configs/multi_gpu.json"] if processes > 1 else [])]
    options = {
        **SETTINGS,
        "dataset_dir": data,
        "output_dir": str(out),
        "batch_size": str(2 // processes),
        **settings,
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, "-m", "monai.bundle", "run", "training", "--config_file", str(configs)]
    command += [part for key, value in options.items() for part in (f"--{key}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def train(processes, data, out, config="train", **settings):
    """Folder of :func:`launch`'s training, which must succeed."""
    done = launch(processes, data, out, config, **settings)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def history(out, name):
    """Values of a metric by epoch, from the only training of the store."""
    record = json.loads((out / "mlflow_run.json").read_text())
    client = MlflowClient(record["tracking_uri"])
    assert len(client.search_runs([client.get_experiment_by_name("dmri_monai").experiment_id])) == 1
    points = client.get_metric_history(record["run_id"], name)
    return torch.tensor([p.value for p in sorted(points, key=lambda p: p.step)])


@pytest.mark.slow
def test_two_processes_pretrain_as_one_that_gathers_the_gradients_of_two_batches(data, tmp_path):
    """Not as one with a batch twice as large: the pretext's loss is a mean over the head's voxels of a batch."""
    one = train(1, data, tmp_path / "one" / "run", "pretrain", batch_size="1", accumulation_steps="2")
    two = train(2, data, tmp_path / "two" / "run", "pretrain")
    for name in ("train_loss", "val_loss"):
        torch.testing.assert_close(history(two, name), history(one, name), rtol=0, atol=1e-4)
    load_weights(build_network(ModelSpec(size="tiny"), ModelSpec().pretext_irreps), two / "model.pt")


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_and_the_metrics_of_one(data, tmp_path):
    one = train(1, data, tmp_path / "one" / "run")
    two = train(2, data, tmp_path / "two" / "run")
    for name in ("train_loss", "val_dice"):
        torch.testing.assert_close(history(two, name), history(one, name), rtol=0, atol=1e-4)
    network = build_network(ModelSpec(size="tiny"), "4x0e")
    load_weights(network, two / "model.pt")  # no trace of DDP in the names


@pytest.mark.slow
def test_half_the_batch_has_another_loss_curve(data, tmp_path):
    """The control: the comparison above can fail."""
    two = history(train(1, data, tmp_path / "two" / "run"), "train_loss")
    one = history(train(1, data, tmp_path / "one" / "run", batch_size="1"), "train_loss")
    assert (two - one).abs().max() > 1e-3


@pytest.mark.slow
def test_one_validation_scan_for_two_processes_is_refused_with_both_numbers(data, tmp_path):
    split = "{'train':0.75,'val':0.125,'test':0.125}"
    done = launch(2, data, tmp_path / "run", split=split)
    assert done.returncode != 0
    assert "1 validation scan for 2 processes, each needs at least one" in done.stderr
    assert not (tmp_path / "run" / "last.pt").exists()
