"""SIGKILL at random moments of writing: nothing is lost, nothing is left over, and the end is the same bit for bit."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dmri_monai.inference.model import load_model
from dmri_monai.inference.result import Prediction
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


@pytest.fixture(scope="module")
def maps(scan, checkpoint) -> dict[str, Prediction]:
    """Predictions of one scan with other values, and with and without an uncertainty."""
    plain = load_model(checkpoint, "cpu").predict(Scan.read(scan))
    other = replace(plain, image=(plain.image + 1) % 4)
    spread = other.image / 4
    return {"plain": plain, "other": other, "with uncertainty": replace(other, uncertainty=spread)}


def dying(work: Callable[[], Any], calls: int) -> int:
    """Exit code of a process that does `work` and kills itself instead of renaming or removing a file once more."""

    def counted(call: Callable[..., None]) -> Callable[..., None]:
        def instead(*arguments: Any, **options: Any) -> None:
            if next(numbers) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            call(*arguments, **options)

        return instead

    def run() -> None:
        for name in ("replace", "rename", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        work()

    numbers = itertools.count()
    return ended(fork(run))


def visible(folder: Path) -> dict[str, str]:
    """Digests of the files that a user sees."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("then", ["the same", "another"])
@pytest.mark.parametrize("new", ["plain", "with uncertainty"])
@pytest.mark.parametrize("old", [None, "other", "with uncertainty"])
def test_a_prediction_killed_between_any_two_renames_is_the_old_one_or_the_new_one(
    tmp_path, count, maps, old, new, then
):
    if old is not None:
        maps[old].write(tmp_path / "old")
    maps[new].write(tmp_path / "new")
    sets = [visible(path) if path.is_dir() else {} for path in (tmp_path / "old", tmp_path / "new")]
    for calls in itertools.count():
        folder = tmp_path / f"{calls}"
        if old is not None:
            maps[old].write(folder)
        if (code := dying(lambda out=folder: maps[new].write(out), calls)) == 0:
            break
        assert code == -signal.SIGKILL
        leftovers._swept.clear()
        maps[new].write(folder, name=None if then == "the same" else "another")
        found = {name: digest for name, digest in visible(folder).items() if not name.startswith("another")}
        whole = found == sets[1] or (found == sets[0] and then == "another")
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        count("kills between renames", "right" if whole else "wrong")
        count("kills between renames", "left over", len(left))
        assert whole, found.keys()
        assert not left
    assert calls > len(sets[1])


def test_a_scan_killed_between_any_two_renames_is_read_with_its_own_table(tmp_path, count, scan):
    old = Scan.read(scan)
    new = old[list(reversed(range(len(old))))]
    for calls in itertools.count():
        path = tmp_path / f"{calls}" / "scan.nii.gz"
        old.write(path)
        if (code := dying(lambda out=path: new.write(out), calls)) == 0:
            break
        assert code == -signal.SIGKILL
        found = Scan.read(path)
        expected = new if torch.equal(found.signal, new.signal) else old
        whole = torch.equal(found.signal, expected.signal) and torch.equal(
            found.table.bvals, expected.table.bvals
        )
        count("kills between renames", "right" if whole else "wrong")
        assert whole
    assert calls > 3
