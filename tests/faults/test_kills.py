"""SIGKILL at random moments of writing: nothing is lost, nothing is left over, and the end is the same bit for bit."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from dmri_monai.inference.model import load_model
from dmri_monai.inference.weights import read_weights
from dmri_monai.io import leftovers, read_nifti
from dmri_monai.io.json_sidecar import read_json
from dmri_monai.scan import Scan
from tests.faults.counting import ended, fork
from tests.faults.trainings import train

LONGEST_S = (
    0.03  # of a pause between the start of an epoch and the kill: some hit a write, some what is around it
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights at the end of a training that nobody kills."""
    return train(tmp_path_factory.mktemp("whole")).state_dict()


def cut(folder: Path, draw: random.Random) -> bool:
    """Start or resume the training in a process, and kill it in a random epoch; whether the kill came in time."""
    reader, writer = os.pipe()
    pid = fork(lambda: (os.close(reader), train(folder, on_epoch=lambda: os.write(writer, b"."))))
    os.close(writer)
    for _ in range(draw.randint(1, 3)):
        os.read(reader, 1)
    time.sleep(draw.random() * LONGEST_S)
    os.kill(pid, signal.SIGKILL)
    os.close(reader)
    return ended(pid) == -signal.SIGKILL


@pytest.mark.parametrize("seed", range(20))
def test_killed_trainings_end_as_if_nothing_had_happened(tmp_path, count, whole, seed):
    draw, kills, epochs = random.Random(seed), 0, 0
    while kills < 5 and epochs < 8:
        kills += cut(tmp_path, draw)
        if (tmp_path / "last.pt").is_file():
            before, epochs = epochs, torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"]
            assert epochs >= before, count("kills of trainings", "lost")
            read_weights(tmp_path / "model.pt")
    network = train(tmp_path).state_dict()
    leftovers._swept.clear()
    train(tmp_path, epochs=9)  # which writes once more after the last kill
    left = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    same = all(torch.equal(network[name], value) for name, value in whole.items())
    count("kills of trainings", "left over", len(left))
    count("kills of trainings", "right" if same else "wrong", kills)
    assert same
    assert not left


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_prediction_leaves_whole_files(tmp_path, count, scan, checkpoint, seed):
    draw = random.Random(seed)
    found = load_model(checkpoint, "cpu").predict(Scan.read(scan))
    expected = found.write(tmp_path / "whole").files
    reader, writer = os.pipe()

    def write() -> None:
        while True:
            os.write(writer, b".")
            found.write(tmp_path / "out")

    pid = fork(write)
    for _ in range(draw.randint(1, 4)):
        os.read(reader, 1)
    time.sleep(draw.random() * LONGEST_S)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    for path in [p for p in (tmp_path / "out").glob("*") if not p.name.startswith(".")]:
        if path.suffix == ".json":
            assert read_json(path) == read_json(expected["sidecar"]), count("kills of predictions", "wrong")
        else:
            same = torch.equal(read_nifti(path), read_nifti(expected["prediction"]))
            assert same, count("kills of predictions", "wrong")
    leftovers._swept.clear()
    found.write(tmp_path / "out")
    left = list((tmp_path / "out").glob(".*"))
    count("kills of predictions", "left over", len(left))
    count("kills of predictions", "right")
    assert not left
