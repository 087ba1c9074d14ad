"""The notebooks run from beginning to end, and their own checks hold; they are kept without outputs."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PATHS = re.compile(r"(?<![\w.:/])/(?!/)\w+/|[A-Z]:\\|~/|file:")  # of a machine
TIMEOUT_S = 1800  # of a cell
FACTS = {  # what each prints once its checks have passed
    "real_scan": ["median angle to the truth", "median angle the same, x flipped"],
    "layers": ["Own        turning the input turns the output", "Control    relative error"],
}

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream")


def executed(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """`notebook` with the outputs of a run in `folder`, by a kernel of this Python."""
    where = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=TIMEOUT_S, kernel_name="python3", resources=where).execute()


@pytest.mark.slow
@each
def test_notebook_runs_and_its_checks_hold(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    done = executed(read(path), tmp_path)
    shown = printed(done)
    assert all(fact in shown for fact in FACTS[path.stem]), shown
    pictures = [o for cell in done.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2


@each
def test_notebook_is_kept_without_outputs_and_paths_of_a_machine(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert not PATHS.findall(path.read_text(encoding="utf-8"))
    assert notebook.metadata.kernelspec.name == "python3"


@each
def test_first_cell_of_code_holds_the_settings_and_a_check_is_in_the_last_section(path):
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert code[0].metadata.tags == ["parameters"]
    settings: dict[str, object] = {}
    exec(code[0].source, settings)
    assert settings["scan"] is None
    assert any(line.startswith("assert ") for cell in code[-4:] for line in cell.source.splitlines())


@pytest.mark.parametrize("text", ['"/home/someone/scan.nii"', '"/data/x"', r"C:\\scan", '"~/scan.nii"'])
def test_a_path_of_a_machine_would_be_found(text):
    assert PATHS.search(text)


@pytest.mark.slow
def test_a_notebook_whose_check_fails_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 > 2, 'no'")])
    with pytest.raises(CellExecutionError, match="AssertionError.*: no"):
        executed(notebook, tmp_path)
