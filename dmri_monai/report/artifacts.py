"""The record of simulated artifacts as a table: which ones, where, how strong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dmri_monai.io.acquisition import read_json
from dmri_monai.io.sidecars import inherited
from dmri_monai.transforms.artifacts.compose import Record, ground_truth

__all__ = ["artifact_rows", "recorded_artifacts"]

FEW = 4  # numbers that are listed; of more, only their range is


def artifact_rows(record: Record | str) -> list[dict[str, str]]:
    """A row for every artifact of a record of `corrupt` or `RandDWIArtifactsd` (or its JSON), in physical order:
    its name, how many volumes and slices it changed, and what was drawn.
    """
    content: Record = json.loads(record) if isinstance(record, str) else record
    hits = ground_truth(content, torch.eye(4))
    return [
        {
            "artifact": entry["artifact"].replace("_", " "),
            "volumes": f"{int(hits[entry['artifact']].any(1).sum())} of {len(hits[entry['artifact']])}",
            "slices": f"{int(hits[entry['artifact']].sum())} of {hits[entry['artifact']].numel()}",
            "drawn": "; ".join(f"{name} {_summary(value)}" for name, value in entry["drawn"].items()),
        }
        for entry in content["applied"]
    ]


def recorded_artifacts(scan: str | Path) -> Record | None:
    """The record in the JSON sidecar of a phantom's scan; None without one."""
    for path in reversed(inherited(Path(scan), "json")):
        phantom = read_json(path).get("Phantom")
        if isinstance(phantom, Mapping) and "Artifacts" in phantom:
            return dict(phantom["Artifacts"])
    return None


def _summary(value: Any) -> str:
    """Numbers in three digits; of many, how many and their range."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_summary(one)}" for name, one in value.items())
    if isinstance(value, list) and value:
        numbers = torch.tensor(value, dtype=torch.float64).flatten().tolist()
        if len(numbers) > FEW:
            return f"{min(numbers):.3g} to {max(numbers):.3g} ({len(numbers)} numbers)"
        return ", ".join(map(_summary, numbers))
    return f"{value:.3g}" if isinstance(value, float) else str(value)
