"""Parts in order, in time, and not twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import Lines, in_order, run_part
from benchmarks.gpu.parts import SIZES, Part, marked_files, parts
from benchmarks.gpu.wheels import ROOT, THERE, closure, wanted

ENVIRONMENT = {**os.environ}


def python(code: str, seconds: float = 60.0, name: str = "part") -> Part:
    return Part(name, [sys.executable, "-c", code], seconds)


def read(lines: Lines) -> list[dict]:
    return [json.loads(text) for text in lines.path.read_text(encoding="utf-8").splitlines()]


def test_lines_of_a_part_are_kept_as_they_come_and_the_rest_goes_to_its_log(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "lines.jsonl")
    code = "import sys; print('{\"value\": 1}'); print('words'); print('error', file=sys.stderr)"
    assert run_part(python(code), 60, lines, ENVIRONMENT) == "finished"
    first, last = read(lines)
    assert first == {"part": "part", "value": 1}
    assert last["state"] == "finished"
    assert {"words", "error"} <= set((tmp_path / "part.log").read_text().split())


def test_a_part_that_fails_is_said_with_its_reason_and_does_not_end_the_run(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "lines.jsonl")
    assert run_part(python("raise ValueError('broken')"), 60, lines, ENVIRONMENT) == "failed"
    (line,) = read(lines)
    assert line["code"] == 1
    assert "ValueError: broken" in line["end_of_log"]


def test_a_part_is_ended_with_all_that_it_started_when_its_time_is_over(tmp_path: Path) -> None:
    lines, file = Lines(tmp_path / "lines.jsonl"), tmp_path / "child"
    code = (
        "import subprocess, sys, time; print('{\"value\": 1}', flush=True)\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); open({str(file)!r}, 'w')"
        ".write(str(child.pid)); time.sleep(600)"
    )
    start = time.monotonic()
    assert run_part(python(code), 8, lines, ENVIRONMENT) == "out of time"
    assert time.monotonic() - start < 60
    assert [line.get("value") for line in read(lines)] == [1, None]
    assert not _runs(int(file.read_text()))


def _runs(process: int) -> bool:
    """Whether it is there, and not only its entry, which its parent has not read."""
    status = Path(f"/proc/{process}/status")
    return status.is_file() and "State:\tZ" not in status.read_text()


def test_what_finished_is_left_out_and_what_was_never_begun_goes_first() -> None:
    found = [python("", name=name) for name in ("a", "b", "c", "d")]
    states = {"a": "finished", "b": "out of time", "c": "failed"}
    assert [part.name for part in in_order(found, states, None)] == ["d", "b", "c"]
    assert [part.name for part in in_order(found, {}, ["b", "d"])] == ["b", "d"]


def test_half_a_line_of_a_killed_call_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"part": "a", "state": "finished"}\n{"part": "b", "sta')
    lines = Lines(path)
    lines.add("c", state="failed")
    assert lines.states() == {"a": "finished", "c": "failed"}


@pytest.mark.slow
def test_all_files_with_a_test_for_a_gpu_are_run() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--collect-only",
        "-m",
        "gpu",
        "tests",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    collected = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert "tests/equivariant/test_gpu.py" in collected
    assert collected == set(marked_files())
    assert parts(Path(), 12, dry=False)[0].command[-len(marked_files()) :] == marked_files()


@pytest.mark.parametrize(("minutes", "size"), [(1.0, "small"), (12.0, "cpu")])
def test_experiments_take_the_largest_size_that_the_time_allows(minutes: float, size: str) -> None:
    command = parts(Path("out"), minutes, dry=False)[-1].command
    assert command[command.index("--size") + 1] == size
    assert set(SIZES.values()) >= {size}


def test_budgets_of_what_comes_before_the_experiments_leave_them_time() -> None:
    found = parts(Path(), 12, dry=False)
    before = [part for part in found if not part.name.startswith("experiments")]
    assert sum(part.seconds for part in before) <= 0.8 * 12 * 60
    assert [part.name for part in found[: len(before)]] == [part.name for part in before]


WITHOUT = """
import sys
from importlib.machinery import PathFinder

ABSENT = set({names!r})

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that has what the runs count on and the wheels, and nothing else from outside."""
    there = {*closure(THERE), *wanted(), "pip"}
    absent = [
        module
        for module, owners in packages_distributions().items()
        if module.isidentifier() and not any(owner.lower().replace("_", "-") in there for owner in owners)
    ]
    assert {"mlflow", "nilearn", "pandas", "pyarrow"} <= set(absent)
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text(
        WITHOUT.format(names=sorted(set(absent) - {"dmri_monai"}))
    )
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'without'}:{ROOT}", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_what_is_run_can_be_imported_without_what_is_not_there(machine: dict[str, str]) -> None:
    modules = [
        "benchmarks.gpu.__main__",
        "benchmarks.gpu.test_lines",
        "benchmarks.experiments.runner",
        "benchmarks.experiments.pretexts",
        "monai.engines",
    ]
    code = f"import importlib; [importlib.import_module(name) for name in {modules!r}]; print('imported')"
    done = subprocess.run([sys.executable, "-c", code], env=machine, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip().endswith("imported"), done.stderr[-2000:]
    control = subprocess.run(
        [sys.executable, "-c", "import mlflow"], env=machine, capture_output=True, text=True
    )
    assert "No module named 'mlflow'" in control.stderr


@pytest.mark.slow
def test_the_dry_form_runs_every_part_without_what_is_not_there_and_a_second_call_runs_none(
    machine: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--dry", "--minutes", "240", "--out", str(out), "--wheels", str(tmp_path / "none")]
    command = [sys.executable, "-m", "benchmarks.gpu", "run", *options]
    done = subprocess.run(command, env=machine, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = [json.loads(text) for text in (out / "lines.jsonl").read_text().splitlines()]
    states = {line["part"]: line["state"] for line in found if "state" in line}
    assert states == {part.name: "finished" for part in parts(out, 240, dry=True)}
    assert len([line for line in found if line.get("outcome") == "skipped"]) > 40  # the tests marked gpu
    for name in states:
        assert any(line["part"] == name and "state" not in line for line in found), f"no line of {name}"
    again = subprocess.run(command, env=machine, capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 0
    assert [json.loads(text)["part"] for text in again.stdout.splitlines()] == ["machine"]
