"""Presets: which artifacts a scan may have, how likely, how strong.  Plain JSON; the strengths are our own
choice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dmri_monai.artifacts.engine.artifact import Artifact
from dmri_monai.artifacts.engine.catalogue import ARTIFACTS

__all__ = ["Preset", "describe_presets", "load_preset", "preset_files"]

PACKAGE = Path(__file__).parents[2]
# A wheel carries the folder inside the package; in a checkout it is configs/artifacts.
FOLDERS = (PACKAGE / "presets", PACKAGE.parent / "configs" / "artifacts")


@dataclass(frozen=True)
class Preset:
    """Artifacts to draw from, kept in physical order whatever order they are given in."""

    name: str
    artifacts: tuple[Artifact, ...]
    description: str = ""

    def __post_init__(self) -> None:
        names = [artifact.name for artifact in self.artifacts]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"preset {self.name}: {', '.join(twice)} given twice")
        order = list(ARTIFACTS)
        object.__setattr__(
            self, "artifacts", tuple(sorted(self.artifacts, key=lambda a: order.index(a.name)))
        )

    @classmethod
    def from_mapping(cls, name: str, content: Mapping[str, Any], source: str) -> Preset:
        """Preset of `content`, {"description": str, "artifacts": {name: {"prob": p, parameter: range}}}."""
        if not isinstance(content.get("artifacts"), Mapping):
            raise ValueError(f'expected an object "artifacts" in {source}')
        made = [_artifact(key, value, source) for key, value in content["artifacts"].items()]
        return cls(name, tuple(made), str(content.get("description", "")))


def preset_files() -> dict[str, Path]:
    """Shipped presets by name."""
    for folder in FOLDERS:
        files = {path.stem: path for path in sorted(folder.glob("*.json"))}
        if files:
            return files
    raise FileNotFoundError(f"no artifact presets in {' or '.join(str(f) for f in FOLDERS)}")


def load_preset(preset: str | Path | Preset | Artifact | Mapping[str, Any]) -> Preset:
    """Preset by name, by path of a JSON file, of a JSON file's content, of one artifact, or as it is."""
    if isinstance(preset, Preset):
        return preset
    if isinstance(preset, Artifact):
        return Preset(preset.name, (preset,))
    if isinstance(preset, Mapping):
        return Preset.from_mapping("custom", preset, "the preset")
    files = preset_files()
    path = files.get(str(preset), Path(preset))
    if not path.is_file():
        raise ValueError(f"preset is {str(preset)!r}, expected one of {', '.join(files)} or a JSON file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {path}: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"expected an object in {path}")
    return Preset.from_mapping(path.stem, content, str(path))


def _artifact(name: str, parameters: Any, source: str) -> Artifact:
    if name not in ARTIFACTS:
        raise ValueError(f"unknown artifact {name!r} in {source}; known: {', '.join(ARTIFACTS)}")
    if not isinstance(parameters, Mapping):
        raise ValueError(f"{name}: expected an object of parameters in {source}")
    known = {field.name for field in fields(ARTIFACTS[name])}
    unknown = sorted(set(parameters) - known)
    if unknown:
        raise ValueError(
            f"{name}: unknown {', '.join(unknown)} in {source}; known: {', '.join(sorted(known))}"
        )
    try:
        return ARTIFACTS[name](**parameters)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error} in {source}") from error


def describe_presets() -> str:
    """Table of the shipped presets: one line per artifact, with its probability and ranges."""
    blocks = []
    for name in preset_files():
        preset = load_preset(name)
        lines = [f"{name}: {preset.description}"]
        for artifact in preset.artifacts:
            ranges = [
                f"{f.name} {_text(getattr(artifact, f.name))}" for f in fields(artifact) if f.name != "prob"
            ]
            lines.append(f"  {artifact.name:26} prob {artifact.prob:<5g} {', '.join(ranges)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _text(value: tuple[float, float]) -> str:
    low, high = value
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"
