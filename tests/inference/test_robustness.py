"""Predictions where the memory does not suffice, or another process writes to the folder."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import get_context

import pytest
import torch

from dmri_monai.inference import study
from dmri_monai.inference.model import load_model
from dmri_monai.inference.study import StudyOptions, predict_study
from dmri_monai.io.locking import alone_with, locked
from dmri_monai.scan import Scan


@pytest.fixture(scope="module")
def model(checkpoint):
    return load_model(checkpoint, "cpu")


@pytest.fixture(scope="module")
def read(scan):
    return Scan.read(scan)


LACKS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    "numpy": MemoryError("Unable to allocate 9 GiB"),
}


@pytest.mark.parametrize("error", LACKS.values(), ids=LACKS.keys())
@pytest.mark.parametrize("place", ["network", "preprocessing", "examination"])
def test_lack_of_memory_names_the_scan_and_what_to_try(model, read, monkeypatch, error, place):
    def lack(*_, **__):
        raise error

    if place == "network":
        monkeypatch.setattr(model.network, "forward", lack)
    elif place == "preprocessing":
        monkeypatch.setattr("monai.transforms.Spacing.__call__", lack)
    else:
        monkeypatch.setattr(model, "examine", lack)
    expected = rf"^out of memory: {read.name} on cpu; try `--window 64 64 64` .*voxels$"
    with pytest.raises(MemoryError, match=expected) as caught:
        model.predict(read)
    assert caught.value.__cause__ is None


def test_window_that_is_too_small_names_the_least_that_does(model, read):
    with pytest.raises(
        ValueError, match=r"sub-01_dwi.*: window is 4 x 4 x 4, cut to .* give at least 8 along one axis"
    ):
        model.predict(read, window=(4, 4, 4))
    corner = Scan(read.image[:, :10, :8, :8], read.table)
    assert model.predict(corner, window=(8, 4, 4)).deviation > 0


def test_second_study_in_a_folder_is_refused(checkpoint, tmp_path):
    options = StudyOptions(models=(str(checkpoint),), device="cpu")
    with (
        locked(tmp_path / "out", "a study"),
        pytest.raises(BlockingIOError, match="is in use by a study: process"),
    ):
        predict_study([], tmp_path, tmp_path / "out", options)
    assert not list((tmp_path / "out").iterdir())
    predict_study([], tmp_path, tmp_path / "out", options)
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".bidsignore"]


def test_processes_of_one_study_write_together(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "_share", lambda _: (1, 2))
    options = StudyOptions(models=(str(checkpoint),), device="cpu")
    with locked(tmp_path / "out", "a study", (0, 2)):
        predict_study([], tmp_path, tmp_path / "out", options)


def test_prediction_waits_for_another_of_the_same_name(model, read, tmp_path):
    found = model.predict(read)
    places = found.write(tmp_path).files
    begun, ended = threading.Event(), []

    def write():
        begun.set()
        found.write(tmp_path)
        ended.append(True)

    with alone_with(places["sidecar"], 0.0):
        other = threading.Thread(target=write)
        other.start()
        begun.wait()
        other.join(0.5)
        assert not ended
    other.join(30)
    assert ended
    assert not list(tmp_path.glob(".*"))


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_killed_process_of_a_study_is_told_with_what_to_try(checkpoint, scan, tmp_path, monkeypatch, start):
    monkeypatch.setattr(study, "get_context", lambda _: get_context(start))
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # one thread each: those of torch do not survive a fork
    monkeypatch.setattr(study, "_work", killed)
    options = StudyOptions(models=(str(checkpoint),), device="cpu", workers=2)
    with pytest.raises(
        MemoryError, match="one of 2 processes was killed; try fewer --workers .* go on with --resume"
    ):
        predict_study([{"image": str(scan)}], scan.parents[2], tmp_path / "out", options)
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".bidsignore"]
