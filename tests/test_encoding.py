"""Text files are read and written as UTF-8 whatever the machine's locale: the linter finds only some of the calls."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("dmri_monai", "benchmarks", "bundle", "docs")


def without_encoding(source: str) -> list[int]:
    """Lines of calls that open a text file and do not say its encoding."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and _opens_text(node)
        and "encoding" not in {k.arg for k in node.keywords}
    ]


def _opens_text(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    if name in ("read_text", "write_text"):
        return True
    if name != "open" or (isinstance(call.func, ast.Attribute) and _is_no_file(call.func.value)):
        return False
    modes = [a for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    modes += [k.value for k in call.keywords if k.arg == "mode" and isinstance(k.value, ast.Constant)]
    return not any("b" in str(mode.value) for mode in modes)


def _is_no_file(owner: ast.expr) -> bool:
    """gzip.open and Image.open read bytes unless told otherwise."""
    return isinstance(owner, ast.Name) and owner.id in ("gzip", "Image", "os", "webbrowser")


def test_every_text_file_is_opened_with_its_encoding():
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    found = {
        str(path.relative_to(ROOT)): without_encoding(path.read_text(encoding="utf-8")) for path in paths
    }
    assert len(paths) > 100
    assert not {path: lines for path, lines in found.items() if lines}


@pytest.mark.parametrize(
    "source",
    ["path.read_text()", "path.write_text(text)", "open(path)", "path.open('w')", "open(p, mode='r')"],
)
def test_a_call_without_encoding_is_noticed(source):
    assert without_encoding(source) == [1]


@pytest.mark.parametrize(
    "source", ["path.read_text(encoding='utf-8')", "path.open('rb')", "open(p, mode='wb')", "Image.open(p)"]
)
def test_a_call_that_says_it_or_reads_bytes_passes(source):
    assert without_encoding(source) == []
