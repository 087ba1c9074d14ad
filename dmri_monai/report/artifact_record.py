"""The record of simulated artifacts as a table: which ones, where, how strong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dmri_monai.artifacts.engine import Record, ground_truth
from dmri_monai.io.json_sidecar import read_json
from dmri_monai.io.sidecars import sidecars_of

__all__ = ["artifact_rows", "recorded_artifacts"]

FEW = 4  # numbers that are listed; of more, only their range is
PLACES = ("volumes", "slices", "hit_volumes")  # counted in columns of their own
AXES = ("left-right", "front-back", "down-up")  # artifacts are drawn on the nearest of these


def artifact_rows(record: Record | str) -> list[dict[str, str]]:
    """A row for every artifact of a record of `corrupt` or `RandDWIArtifactsd` (or its JSON), in physical order:
    its name, how many volumes and slices it changed, and what was drawn.
    """
    content: Record = json.loads(record) if isinstance(record, str) else record
    hits = ground_truth(content, torch.eye(4))
    rows = []
    for entry in content["applied"]:
        changed = hits[entry["artifact"]]
        drawn = {name: value for name, value in entry["drawn"].items() if name not in PLACES}
        rows.append(
            {
                "artifact": entry["artifact"].replace("_", " "),
                "volumes": f"{int(changed.any(1).sum())} of {len(changed)}",
                "slices": f"{int(changed.sum())} of {changed.numel()}",
                "drawn": "; ".join(
                    f"{name.replace('_', ' ')} {_drawn(name, v)}" for name, v in drawn.items()
                ),
            }
        )
    return rows


def recorded_artifacts(scan: str | Path) -> Record | None:
    """The record in the JSON sidecar of a phantom's scan; None without one."""
    for path in reversed(sidecars_of(Path(scan), "json")):
        phantom = read_json(path).get("Phantom")
        if isinstance(phantom, Mapping) and "Artifacts" in phantom:
            return dict(phantom["Artifacts"])
    return None


def _drawn(name: str, value: Any) -> str:
    if name.endswith("axis"):
        return AXES[value]
    return ", ".join(AXES[axis] for axis in value) if name == "axes" else _summary(value)


def _summary(value: Any) -> str:
    """Numbers in four digits; of many, their range and how many they are."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_summary(one)}" for name, one in value.items())
    if not isinstance(value, list):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    leaves = list(_leaves(value))
    if len(leaves) > FEW and all(isinstance(leaf, int | float) for leaf in leaves):
        return f"{min(leaves):.4g} to {max(leaves):.4g} ({len(leaves)} numbers)"
    if len(leaves) > 1 and all(isinstance(leaf, Mapping) for leaf in leaves):
        return _summary({name: [leaf[name] for leaf in leaves if name in leaf] for name in leaves[0]})
    return ", ".join(map(_summary, leaves))


def _leaves(value: Any) -> Iterator[Any]:
    """What nested lists hold."""
    for one in value:
        yield from _leaves(one) if isinstance(one, list) else [one]
