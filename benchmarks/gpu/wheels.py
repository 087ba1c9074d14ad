"""The packages that a machine with torch, but without a package index, lacks: downloaded here, unpacked there.

Assumed there: a Python of `PYTHON` with the packages of `THERE` and pip.  Everything else that the package needs comes
as wheels of the versions in this environment, without mlflow, which nothing in these parts uses.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import Distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["LARGEST_MB", "PYTHON", "THERE", "closure", "download", "install", "unmet", "wanted"]

ROOT = Path(__file__).parents[2]
THERE = {"torch": ">=2.11", "e3nn": "", "numpy": "", "scipy": "", "matplotlib": "", "pytest": ""}
WITHOUT = ("mlflow",)  # of the package's dependencies
FOR_TESTS = ("hypothesis",)
PYTHON = "3.12"
LARGEST_MB = 60
GLIBC = range(5, 29)  # 2.5 to 2.28
LIST = "requirements.txt"  # beside the wheels: versions and hashes


def dependencies() -> list[Requirement]:
    """What the package needs for these parts, with its bounds."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = [Requirement(text) for text in content["project"]["dependencies"]]
    return [one for one in found if canonicalize_name(one.name) not in WITHOUT]


def wanted() -> dict[str, str]:
    """Name -> version in this environment of all that has to be brought."""
    names = [*(one.name for one in dependencies()), *FOR_TESTS]
    found = closure(names, stop=THERE)
    return {name: one.version for name, one in sorted(found.items())}


def closure(
    names: Iterable[str], stop: Iterable[str] = (), paths: list[str] | None = None
) -> dict[str, Distribution]:
    """Name -> distribution of `names` and all that they need, as installed; not of `stop` and what only they need.

    paths: where to look, else in this environment.  ModuleNotFoundError for one that is not installed.
    """
    found: dict[str, Distribution] = {}
    left = [canonicalize_name(name) for name in names]
    known = {canonicalize_name(name) for name in stop}
    while left:
        name = left.pop()
        if name in known:
            continue
        known.add(name)
        found[name] = _installed(name, paths)
        left += [canonicalize_name(one.name) for one in _requirements(found[name])]
    return found


def _installed(name: str, paths: list[str] | None) -> Distribution:
    place = {} if paths is None else {"path": paths}
    made = next(iter(Distribution.discover(name=name, **place)), None)
    if made is None:
        raise ModuleNotFoundError(f"{name} is not installed")
    return made


def _requirements(distribution: Distribution) -> Iterator[Requirement]:
    there = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "extra": ""}
    for text in distribution.requires or ():
        one = Requirement(text)
        if one.marker is None or one.marker.evaluate(there):
            yield one


def download(folder: Path, architecture: str = "x86_64") -> int:
    """Fetch the wheels into `folder`, write their list, and return their bytes.

    ValueError where they are more than `LARGEST_MB` MB together; RuntimeError where pip finds no wheel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    names = [*(f"manylinux_2_{n}" for n in reversed(GLIBC)), "manylinux2014", "manylinux2010", "manylinux1"]
    platforms = [f"--platform={name}_{architecture}" for name in names]
    pinned = [f"{name}=={version}" for name, version in wanted().items()]
    target = [f"--python-version={PYTHON}", "--implementation=cp", *platforms, "--dest", str(folder)]
    _pip("download", "--no-deps", "--only-binary=:all:", *target, *pinned)
    wheels = sorted(folder.glob("*.whl"))
    lines = [
        f"{_pin(wheel)} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" for wheel in wheels
    ]
    (folder / LIST).write_text("\n".join([*lines, ""]), encoding="utf-8")
    size = sum(wheel.stat().st_size for wheel in wheels)
    if size > LARGEST_MB * 1e6:
        raise ValueError(f"the wheels in {folder} have {size / 1e6:.1f} MB, expected at most {LARGEST_MB}")
    return size


def _pin(wheel: Path) -> str:
    name, version = wheel.name.split("-")[:2]
    return f"{name}=={version}"


def install(folder: Path, site: Path) -> None:
    """Unpack the wheels of `folder` into `site`, once for one list, without an index and without what is there."""
    wheels = folder / LIST
    stamp = site / "installed.txt"
    text = wheels.read_text(encoding="utf-8")
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == text:
        return
    offline = ["--no-index", f"--find-links={folder}", "--no-deps", "--require-hashes", "--no-compile"]
    _pip("install", *offline, "--upgrade", f"--target={site}", f"--requirement={wheels}")
    stamp.write_text(text, encoding="utf-8")


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(
            f"pip {arguments[0]} ended with code {done.returncode}: {done.stderr.strip()[-500:]}"
        )


def unmet(paths: list[str]) -> list[str]:
    """What is missing, or too old, of all that the parts need, looked up in the folders `paths`."""
    named = [Requirement(f"{name}{bound}") for name, bound in THERE.items()]
    needed = [*dependencies(), *named, *(Requirement(name) for name in FOR_TESTS)]
    found: dict[str, Distribution | None] = {}
    problems: dict[str, None] = {}
    while needed:
        one = needed.pop()
        name = canonicalize_name(one.name)
        new = name not in found
        if new:
            found[name] = next(iter(Distribution.discover(name=name, path=paths)), None)
        distribution = found[name]
        if distribution is None:
            problems[f"{name}: missing"] = None
            continue
        if not one.specifier.contains(distribution.version, prereleases=True):
            problems[f"{name}: {distribution.version} is there, expected {one.specifier}"] = None
        if new and name not in THERE:  # what these need is theirs to know
            needed += _requirements(distribution)
    return list(problems)


def environment(site: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """`inherited` with the unpacked wheels and this checkout before everything else that Python finds."""
    before = [str(site), str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
    return {**inherited, "PYTHONPATH": ":".join(before)}
