"""What a killed process left behind goes at the next write in that folder; what a live one writes stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dmri_monai.check import check_scan
from dmri_monai.check.lenient import read_files
from dmri_monai.io import leftovers
from dmri_monai.io.dwi import read_parts
from dmri_monai.io.writing import replacing
from dmri_monai.scan import Scan
from tests.io.scans import write_scan

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


FOREIGN = ".tmp-00000000-1-00000000."


def aged(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * 24 * 3600,) * 2)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def scan(tmp_path) -> Path:
    """A scan with its table, nine days old and more."""
    write_scan(tmp_path / "scan.nii.gz")
    for path in tmp_path.iterdir():
        aged(path, 10)
    return tmp_path / "scan.nii.gz"


@pytest.mark.parametrize("whose", ["foreign", "own"])
@pytest.mark.parametrize("read", [Scan.read, check_scan, read_parts, read_files])
def test_reading_a_scan_removes_nothing_that_a_note_says(scan, dead, whose, read):
    name = dead if whose == "own" else f"{FOREIGN}.renames"
    (scan.parent / "precious.txt").write_bytes(b"mine")
    aged(scan.parent / "precious.txt", 10)
    note(scan.parent, name, {}, ["precious.txt"])
    aged(scan.parent / name, 9)
    before = tree(scan.parent)
    read(scan)
    assert tree(scan.parent) == before


@pytest.mark.parametrize("days", [0, 9])
def test_no_note_of_another_machine_renames_or_removes_a_file(scan, days):
    folder = scan.parent
    for name in ("precious.txt", "other.bval", f"{FOREIGN}precious.txt", f"{FOREIGN}other.bval"):
        (folder / name).write_bytes(name.encode())
        aged(folder / name, days + 1 if name.startswith(".") else 10)
    renames = {f"{FOREIGN}{name}": name for name in ("precious.txt", "other.bval")}
    note(folder, f"{FOREIGN}.renames", renames, ["scan.bval"])
    aged(folder / f"{FOREIGN}.renames", days)
    before = {name: content for name, content in tree(folder).items() if not name.startswith(".")}
    Scan.read(scan)
    write(folder)
    after = tree(folder)
    assert {name: after[name] for name in before} == before
    assert len([name for name in after if name.startswith(".")]) == (3 if days == 0 else 0)


def half_written(scan: Path, name: str) -> tuple[str, Scan]:
    """Leave `scan` with the table of a new one, whose image still waits by a note called `name`."""
    process = name.removesuffix(".renames").rstrip(".")
    new = Scan.read(scan)[[1, 0, *range(2, 8)]]
    new.write(scan.parent / "new" / "scan.nii.gz")
    for ending in ("bval", "bvec"):
        (scan.parent / "new" / f"scan.{ending}").replace(scan.with_name(f"scan.{ending}"))
    waiting = f"{process}.scan.nii.gz"
    (scan.parent / "new" / "scan.nii.gz").replace(scan.parent / waiting)
    (scan.parent / "new").rmdir()
    done = {f"{process}.scan.{ending}": f"scan.{ending}" for ending in ("bval", "bvec")}
    note(scan.parent, name, {**done, waiting: "scan.nii.gz"})
    return waiting, new


def test_reading_finishes_the_renames_of_this_machine_and_leaves_the_note_to_the_next_write(scan, dead):
    _, new = half_written(scan, dead)
    torch.testing.assert_close(Scan.read(scan).signal, new.signal)
    assert dead in tree(scan.parent)
    assert not [name for name in write(scan.parent) if name.startswith(".")]


def test_a_half_written_scan_in_a_folder_that_may_not_be_written_in_is_refused(scan, dead, monkeypatch):
    half_written(scan, dead)

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(ValueError, match="half old, half new"):
        Scan.read(scan)


@pytest.mark.parametrize("days", [0, 9])
@pytest.mark.parametrize("read", [Scan.read, check_scan, read_files])
def test_a_scan_that_another_machine_left_half_written_is_refused_until_it_is_written_anew(scan, days, read):
    name = f"{FOREIGN}.renames"
    waiting, new = half_written(scan, name)
    for path in scan.parent.iterdir():
        aged(path, days + (path.name != name))
    for _ in range(2):
        with pytest.raises(ValueError, match=f"half old, half new, by {name}: .*{scan}"):
            read(scan)
        assert {name, waiting} <= set(write(scan.parent))
    new.write(scan)
    read(scan)
    aged(scan.parent / name, 9)
    assert {name, waiting} & set(write(scan.parent)) == ({waiting} if days == 0 else set())


def test_a_scan_of_which_another_machine_has_renamed_nothing_is_read(scan):
    waiting, new = half_written(scan, f"{FOREIGN}.renames")
    note(scan.parent, f"{FOREIGN}.renames", {waiting: "scan.nii.gz"})
    Scan.read(scan)
    assert waiting in tree(scan.parent)


def test_what_another_machine_had_still_to_remove_makes_a_set_unfinished(tmp_path):
    for name in ("map.json", "spread.nii"):
        (tmp_path / name).write_bytes(b"")
        aged(tmp_path / name, 10)
    note(tmp_path, f"{FOREIGN}.renames", {f"{FOREIGN}map.json": "map.json"}, ["spread.nii"])
    assert leftovers.unfinished(tmp_path / "map.json") == tmp_path / f"{FOREIGN}.renames"
    (tmp_path / "spread.nii").unlink()
    assert leftovers.unfinished(tmp_path / "map.json") is None


def test_a_note_of_another_user_is_not_obeyed(tmp_path, dead, monkeypatch):
    (tmp_path / "stale.txt").write_bytes(b"mine")
    note(tmp_path, dead, {}, ["stale.txt"])
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert "stale.txt" in write(tmp_path)


@pytest.mark.parametrize("kind", ["link", "pipe", "large", "NUL", "half a character"])
def test_what_is_called_a_note_and_is_none_keeps_nobody_from_reading_or_writing(scan, dead, kind):
    victim = scan.parent / "victim.txt"
    victim.write_bytes(b"mine")
    aged(victim, 10)
    for name in (dead, f"{FOREIGN}.renames"):
        path = scan.parent / name
        if kind == "link":
            (scan.parent / "elsewhere.json").write_text('{"renames": {}, "gone": ["victim.txt"]}')
            path.symlink_to(scan.parent / "elsewhere.json")
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "large":
            note(scan.parent, name, {}, ["victim.txt", "a" * 2**20])
        else:
            note(scan.parent, name, {}, ["victim.txt", {"NUL": "a\0"}.get(kind, "\ud800")])
    Scan.read(scan)
    assert dead not in write(scan.parent)
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize("source", ["link", "another process's"])
def test_only_files_of_the_note_s_own_process_get_another_name(tmp_path, dead, source):
    (tmp_path / "map.nii").write_bytes(b"mine")
    (tmp_path / "elsewhere").write_bytes(b"not mine")
    waiting = dead.replace(".renames", "map.nii") if source == "link" else f"{FOREIGN}map.nii"
    (tmp_path / waiting).symlink_to("elsewhere") if source == "link" else (tmp_path / waiting).touch()
    note(tmp_path, dead, {waiting: "map.nii"})
    write(tmp_path)
    assert not (tmp_path / "map.nii").is_symlink()
    assert (tmp_path / "map.nii").read_bytes() == b"mine"


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


def test_a_writer_elsewhere_that_is_between_two_names_is_waited_for(scan):
    process = ".tmp-00000000-1-00000000."
    shutil.copy(scan, scan.with_name(f"{process}nii.gz"))
    bval = scan.with_name("scan.bval")
    note(scan.parent, f"{process}renames", {f"{process}bval": bval.name, f"{process}nii.gz": scan.name})
    aged(scan, 10)

    def finish():
        os.replace(scan.with_name(f"{process}nii.gz"), scan)
        scan.with_name(f"{process}renames").unlink()

    writer = threading.Timer(0.3, finish)
    writer.start()
    Scan.read(scan)
    assert not scan.with_name(f"{process}renames").exists()
    writer.join()
