"""Two writers never share a folder, and a killed one leaves nothing that keeps others out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmri_monai.io.locking import FolderLock, locked

ROOT = Path(__file__).parents[2]
HOLD = (
    "import sys, time, pathlib; from dmri_monai.io.locking import FolderLock;"
    "lock = FolderLock(pathlib.Path(sys.argv[1]), 'a training'); lock.acquire();"
    "print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    """Process that holds the lock of tmp_path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_second_writer_is_told_who_the_first_is(tmp_path, holder):
    expected = rf"in use by a training: process {holder.pid} on .*, since .* \(0 minutes\)"
    with pytest.raises(BlockingIOError, match=expected), locked(tmp_path, "predictions"):
        pass


def test_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert list(tmp_path.iterdir())  # what it left
    with locked(tmp_path, "predictions"):
        pass
    assert not list(tmp_path.iterdir())


def test_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "predictions"):
        raise ZeroDivisionError
    with locked(tmp_path, "predictions"):
        pass
    assert not list(tmp_path.iterdir())


def test_parts_of_one_command_write_together_and_exclude_all_else(tmp_path):
    with locked(tmp_path, "part", (0, 2)), locked(tmp_path, "part", (1, 2)):
        for share in ((0, 1), (0, 3), (1, 2)):
            with pytest.raises(BlockingIOError, match="in use by part"):
                FolderLock(tmp_path, "other", share).acquire()
    with locked(tmp_path, "whole"), pytest.raises(BlockingIOError, match="in use by whole"):
        FolderLock(tmp_path, "part", (0, 2)).acquire()
    assert not list(tmp_path.iterdir())


def test_whoever_waits_gets_the_lock_when_it_is_given_back(tmp_path, holder):
    begun = time.monotonic()
    with pytest.raises(BlockingIOError):
        FolderLock(tmp_path, "predictions").acquire(wait_s=0.3)
    assert time.monotonic() - begun >= 0.3
    holder.kill()
    with locked(tmp_path, "predictions", wait_s=10):
        pass


def test_owner_that_cannot_be_read_is_no_obstacle_to_the_message(tmp_path):
    with locked(tmp_path, "predictions"):
        (tmp_path / ".dmri_monai.lock").write_bytes(b"\xff{")
        with pytest.raises(BlockingIOError, match="in use by another process"):
            FolderLock(tmp_path, "predictions").acquire()
