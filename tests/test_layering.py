"""Imports of the package point to a lower rank, in all three forms, and the low layers stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "dmri_monai"
ROOT = Path(__file__).resolve().parents[1] / PACKAGE
RANKS = (
    ("gradients", "so3", "lazy", "flags", "parallel", "out_of_memory", "signals", "warning_lines"),
    ("qspace", "equivariant", "failures"),
    ("artifacts", "io", "networks"),
    ("scan", "transforms", "losses", "metrics", "testing"),
    ("phantom", "reference", "tasks", "register", "check", "report"),
    ("inference",),
    ("prediction", "training", "integrations"),
    ("cli", "__init__"),
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
LIGHT_ROOMS = ("qspace", "transforms", "losses", "metrics", "reference", "check", "report", "phantom")
# attached to ignite engines, whose handlers they are
EVALUATOR_MODULES = ("metric_handler", "subject_table")
WITHOUT_MONAI = ("gradients", "so3", "equivariant", "qspace", "artifacts")


def imports(source: str) -> Iterator[str]:
    """Dotted names a module imports, at the top or in a function; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def upward(here: str, source: str) -> list[str]:
    """Modules of the package that `here` imports and that are not of a lower rank."""
    inside = [name.split(".")[1] for name in imports(source) if name.startswith(f"{PACKAGE}.")]
    return [there for there in inside if there in RANK and there != here and RANK[there] >= RANK[here]]


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def test_every_module_has_a_rank():
    assert {room(path) for path in modules()} <= set(RANK)


def test_imports_point_downwards():
    found = {
        str(path.relative_to(ROOT)): upward(room(path), path.read_text(encoding="utf-8"))
        for path in modules()
    }
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "source",
    [
        "from dmri_monai.transforms.load import LoadDWId",
        "import dmri_monai.transforms",
        "from dmri_monai import transforms",
        "def later():\n    import dmri_monai.transforms.load as load",
    ],
    ids=["from-module", "import", "from-package", "in-a-function"],
)
def test_an_upward_import_is_noticed_in_every_form(source):
    assert upward("io", source) == ["transforms"]


def test_modules_of_one_rank_do_not_import_each_other():
    assert upward("networks", "from dmri_monai.io import read_dwi") == ["io"]


def test_a_downward_import_and_one_of_the_same_package_are_allowed():
    assert not upward(
        "io", "from dmri_monai.gradients import B0_THRESHOLD\nfrom dmri_monai.io.nifti import open_nifti"
    )


@pytest.mark.parametrize("name", WITHOUT_MONAI)
def test_physics_and_layers_do_not_know_monai(name):
    paths = [path for path in modules() if room(path) == name]
    found = [
        path.name
        for path in paths
        if any(n.split(".")[0] == "monai" for n in imports(path.read_text(encoding="utf-8")))
    ]
    assert paths
    assert not found


def test_no_module_is_called_utils():
    assert not [path for path in modules() if path.stem in ("utils", "helpers", "misc", "common")]


def run(code: str) -> str:
    """What `code` prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_neither_torch_nor_monai():
    code = f"import sys, {PACKAGE}; print([m for m in ('torch', 'monai') if m in sys.modules])"
    assert run(code) == "[]"


def test_importing_physics_and_layers_loads_neither_monai_nor_e3nn():
    names = ", ".join(f"{PACKAGE}.{name}" for name in (*WITHOUT_MONAI, "artifacts.engine"))
    assert run(f"import sys, {names}; print([m for m in ('monai', 'e3nn') if m in sys.modules])") == "[]"


def test_rooms_and_prediction_are_imported_without_what_only_some_of_their_functions_need():
    """MONAI loads these libraries by itself, where they are installed; without them rooms and prediction must do."""
    block = [
        "import sys",
        f"from {PACKAGE}.cli.prediction_commands import UNNEEDED",
        "sys.modules.update(dict.fromkeys((*UNNEEDED, 'mlflow', 'ignite', 'matplotlib', 'sklearn', 'jinja2')))",
        f"from {PACKAGE}.prediction import load_model",
    ]
    paths = [p for p in modules() if room(p) in LIGHT_ROOMS and p.stem not in EVALUATOR_MODULES]
    names = [".".join(p.relative_to(ROOT.parent).with_suffix("").parts) for p in paths]
    lines = [f"import {name.removesuffix('.__init__')}" for name in names]
    assert run("\n".join([*block, *lines, "print(load_model.__name__)"])) == "load_model"
