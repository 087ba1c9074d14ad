"""What is run on a machine with one GPU, the most valuable first, and how long each may take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = ["Part", "marked_files", "parts"]

ROOT = Path(__file__).parents[2]
MARK = "mark.gpu"
# smallest minutes that are left -> size of the experiments; none of them ends in these, which is what keys are for
SIZES = {0.0: "small", 3.0: "cpu", 300.0: "full"}
NEEDS_TEMPLATE = "full"  # its anatomy is in nilearn, which is not among the wheels


@dataclass(frozen=True)
class Part:
    """A command whose lines of JSON are kept.  seconds: the most it may take."""

    name: str
    command: Sequence[str]
    seconds: float


def parts(out: Path, minutes: float, *, dry: bool) -> list[Part]:
    """All parts, in the order they are run; `out` is where experiments keep what they resume from.

    dry: on the CPU at sizes that mean nothing, through the same commands.
    """
    rest = 60 * minutes
    return [
        _tests(0.25 * rest),
        *(_network(*one, (0.09 if one[1] else 0.07) * rest, dry) for one in NETWORKS),
        _script("layers", "equivariant_layers", 0.1 * rest, LAYERS_DRY if dry else LAYERS),
        _script("artifacts", "artifacts", 0.06 * rest, ARTIFACTS_DRY if dry else ARTIFACTS),
        _script("transforms", "transforms", 0.04 * rest, TRANSFORMS_DRY if dry else TRANSFORMS),
        *(_experiment(name, out, rest, dry) for name in ("lesions", "pretraining", "generalisation")),
    ]


# precision, compiled
NETWORKS = (("bfloat16", False), ("float32", False), ("bfloat16", True), ("float32", True))
LAYERS = ("--device", "cuda", "--q", "64", "128", "--repeats", "5")
LAYERS_DRY = ("--device", "cpu", "--q", "4", "6", "--size", "4", "--repeats", "1")
ARTIFACTS = ("--device", "cuda", "--repeats", "5")
ARTIFACTS_DRY = ("--device", "cpu", "--repeats", "1", "--draws", "1", "--shape", "5", "24", "24", "20")
TRANSFORMS = ("--device", "cuda", "--skip-dipy")
TRANSFORMS_DRY = ("--device", "cpu", "--skip-dipy", "--repeats", "1", "--shape", "20", "20", "16")


def marked_files() -> list[str]:
    """Test files with a test marked `gpu`, relative to the root: the others may import what is not there."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(f.relative_to(ROOT)) for f in files if MARK in f.read_text(encoding="utf-8")]


def _tests(seconds: float) -> Part:
    options = ["-m", "gpu", "-p", "benchmarks.gpu.test_lines", "-p", "no:cacheprovider", "--color=no"]
    return Part("tests", [sys.executable, "-m", "pytest", *options, *marked_files()], seconds)


def _script(name: str, file: str, seconds: float, arguments: Sequence[str]) -> Part:
    return Part(name, [sys.executable, "-W", "ignore", f"benchmarks/{file}.py", *arguments], seconds)


def _network(precision: str, compiled: bool, seconds: float, dry: bool) -> Part:
    arguments = ["--precision", precision]
    if dry:
        arguments += ["--device", "cpu", "--size", "tiny", "--shape", "16", "16", "16", "--repeats", "1"]
    if compiled:  # without a compiler, the dry form shows that the networks can be traced
        arguments += ["--compile", "aot_eager" if dry else "inductor"]
    name = f"networks, {precision}{', compiled' if compiled else ''}"
    return _script(name, "networks", seconds, arguments)


def _experiment(name: str, out: Path, seconds: float, dry: bool) -> Part:
    size = "small" if dry else _largest(seconds / 60)
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.experiments", name, "--size", size]
    folders = ["--out", str(out / "experiments"), "--work", str(out / "experiments" / "work")]
    return Part(f"experiments, {name}", [*command, "--device", "cpu" if dry else "cuda", *folders], seconds)


def _largest(minutes: float) -> str:
    """The largest size that `minutes` are worth starting."""
    can = [size for least, size in SIZES.items() if minutes >= least]
    if can[-1] == NEEDS_TEMPLATE and find_spec("nilearn") is None:
        can.pop()
    return can[-1]
