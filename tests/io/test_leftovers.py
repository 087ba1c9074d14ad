"""What a killed process left behind goes at the next write in that folder; what a live one writes stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dmri_monai.io import leftovers
from dmri_monai.io.writing import replacing

ROOT = Path(__file__).parents[2]
WRITE = (
    "import sys, time, pathlib; from dmri_monai.io.writing import replacing;"
    "target = pathlib.Path(sys.argv[1], 'map.nii.gz')\n"
    "with replacing(target) as (aside,):\n"
    "    aside.write_bytes(b'half'); print('written', flush=True); time.sleep(60)"
)


@pytest.fixture
def writer(tmp_path):
    """Process in the middle of writing a file in tmp_path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout.readline() == "written\n"
    yield process
    process.kill()
    process.wait()


def write(folder):
    leftovers._swept.clear()
    with replacing(folder / "other.txt") as (aside,):
        aside.write_text("whole", encoding="utf-8")
    return sorted(path.name for path in folder.iterdir())


def test_leftovers_of_a_killed_process_go_at_the_next_write(tmp_path, writer):
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert len(list(tmp_path.iterdir())) == 1
    assert write(tmp_path) == ["other.txt"]


def test_file_of_a_live_process_stays(tmp_path, writer):
    names = write(tmp_path)
    assert len(names) == 2
    assert names[0].startswith(".tmp-")


def test_file_of_another_machine_stays_until_it_is_abandoned(tmp_path):
    foreign = tmp_path / ".tmp-0123abcd-1-0123abcd.map.nii.gz"
    foreign.write_bytes(b"half")
    assert len(write(tmp_path)) == 2
    old = time.time() - 8 * 24 * 3600
    os.utime(foreign, (old, old))
    assert write(tmp_path) == ["other.txt"]


def test_hidden_files_of_others_stay(tmp_path):
    for name in (".tmp-notes.txt", ".bashrc", ".tmp-0123abcd-x-0123abcd.a", "tmp-0123abcd-1-0123abcd.a"):
        (tmp_path / name).write_bytes(b"")
    assert len(write(tmp_path)) == 5


def test_long_names_can_be_written_aside(tmp_path):
    target = tmp_path / ("a" * 240 + ".nii.gz")
    with replacing(target) as (aside,):
        assert aside.name.endswith(".nii.gz")
        aside.write_bytes(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.fixture
def dead() -> str:
    """Name of a note of renames, and so begin the names of files, of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return leftovers.temporary_name(".renames").replace(f"-{os.getpid()}-", f"-{process.pid}-")


def note(folder, name, renames, gone=()):
    (folder / name).write_text(json.dumps({"renames": renames, "gone": list(gone)}), encoding="utf-8")


def test_renames_of_a_killed_process_are_finished(tmp_path, dead):
    source = dead.replace(".renames", "map.nii")
    (tmp_path / source).write_bytes(b"new")
    (tmp_path / "stale.txt").write_bytes(b"old")
    before = dead.replace(".renames", "map.json")  # has its name already
    note(tmp_path, dead, {source: "map.nii", before: "map.json"}, ["stale.txt"])
    assert write(tmp_path) == ["map.nii", "other.txt"]


def test_renames_that_a_later_write_has_overtaken_are_not_finished(tmp_path, dead):
    source = dead.replace(".renames", "map.nii")
    (tmp_path / source).write_bytes(b"new")
    note(tmp_path, dead, {source: "map.nii"}, ["spread.nii"])
    os.utime(tmp_path / dead, (time.time() - 9,) * 2)
    (tmp_path / "spread.nii").write_bytes(b"newer")
    assert write(tmp_path) == ["other.txt", "spread.nii"]


@pytest.mark.parametrize(
    "content",
    [
        '{"renames": {"../victim": "other"}, "gone": []}',
        '{"renames": {}, "gone": ["../victim"]}',
        '{"renames": {}, "gone": [".."]}',
        "{",
        "[]",
    ],
)
def test_a_note_reaches_nothing_outside_of_its_folder(tmp_path, dead, content):
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / dead).write_text(content, encoding="utf-8")
    assert write(tmp_path / "folder") == ["other.txt"]
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_a_note_renames_temporary_files_alone(tmp_path, dead):
    (tmp_path / "scan.nii").write_bytes(b"mine")
    note(tmp_path, dead, {"scan.nii": "label.nii"})
    assert write(tmp_path) == ["other.txt", "scan.nii"]
