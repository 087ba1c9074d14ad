"""What a machine with torch alone needs besides, and how it gets there."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import wheels
from benchmarks.gpu.wheels import LIST, THERE, closure, install, unmet, wanted


def test_all_that_is_needed_comes_but_what_is_there_and_mlflow() -> None:
    found = wanted()
    assert {"monai", "nibabel", "dipy", "pytorch-ignite", "pydantic", "typer", "hypothesis"} <= set(found)
    assert not {"mlflow", "nilearn", "pandas", "pyarrow", *THERE} & set(found)


def test_needs_of_needs_come_too() -> None:
    assert {"pydantic", "pydantic-core", "annotated-types"} <= set(closure(["pydantic"]))
    assert "pydantic-core" not in closure(["pydantic"], stop=["pydantic-core"])
    with pytest.raises(ModuleNotFoundError, match="no-such-package is not installed"):
        closure(["no-such-package"])


def test_versions_are_those_of_the_lock_file() -> None:
    lock = (Path(wheels.ROOT) / "requirements.lock").read_text(encoding="utf-8").lower()
    locked = dict(re.findall(r"^([\w.-]+)==(\S+)$", lock, re.MULTILINE))
    locked = {re.sub(r"[-_.]+", "-", name): version for name, version in locked.items()}
    assert {name: locked.get(name) for name in wanted()} == wanted()


def distribution(folder: Path, name: str, version: str, *requires: str) -> None:
    """An installed distribution, as far as its metadata go."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")


def test_what_is_missing_or_too_old_is_named(tmp_path: Path) -> None:
    assert unmet(sys.path) == []
    for name, version in wanted().items():
        if name != "nibabel":
            distribution(tmp_path, name, "0.0.1" if name == "tqdm" else version)
    for name in THERE:
        distribution(tmp_path, name, "2.10.0" if name == "torch" else "99.0")
    problems = unmet([str(tmp_path)])
    assert "nibabel: missing" in problems
    assert "torch: 2.10.0 is there, expected >=2.11" in problems
    assert any(text.startswith("tqdm: 0.0.1 is there, expected >=") for text in problems)


def test_a_need_of_a_brought_package_counts(tmp_path: Path) -> None:
    for name, version in wanted().items():
        distribution(tmp_path, name, version, *(["needed-by-monai>=2"] if name == "monai" else []))
    for name in THERE:
        distribution(tmp_path, name, "0.6.0" if name == "e3nn" else "99.0", "needed-by-torch")
    problems = unmet([str(tmp_path)])
    assert "needed-by-monai: missing" in problems
    assert "needed-by-torch: missing" not in problems


def wheel(folder: Path, content: str) -> Path:
    """A wheel of one module, and the list beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "brought-1.0-py3-none-any.whl"
    files = {
        "brought.py": content,
        "brought-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\nRequires-Dist: torch\n",
        "brought-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "brought-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


@pytest.mark.slow
def test_wheels_are_unpacked_once_without_an_index_and_as_they_were_packed(tmp_path: Path) -> None:
    path = wheel(tmp_path / "wheels", "VALUE = 1\n")
    digest = wheels.hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / LIST).write_text(f"brought==1.0 --hash=sha256:{digest}\n")
    site = tmp_path / "site"
    install(path.parent, site)
    run = [sys.executable, "-c", "import brought; print(brought.VALUE)"]
    environment = wheels.environment(site, {})
    assert subprocess.check_output(run, env=environment, text=True).strip() == "1"
    (site / "brought.py").write_text(
        "VALUE = 20\n"
    )  # of another size: Python's own cache looks at that and the second
    install(path.parent, site)  # the same list: nothing is done
    assert subprocess.check_output(run, env=environment, text=True).strip() == "20"
    wheel(path.parent, "VALUE = 3\n")  # other content than the list says
    with pytest.raises(RuntimeError, match="pip install ended with code"):
        install(path.parent, tmp_path / "other")
