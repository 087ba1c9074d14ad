"""Untrained tiny models as a training leaves them: model.pt with model.json, for tests of what uses a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dmri_monai.inference.model import Model, build_network
from dmri_monai.tasks.tasks import task

SPACING_MM = [6.0, 6.0, 6.0]


def save_model(path: Path, name: str = "tissue", model: Model | None = None, **settings: Any) -> Path:
    """Write a network for the task `name` to `path` and its settings beside it; the same weights every time."""
    model = model or Model(size="tiny")
    torch.manual_seed(0)
    torch.save(build_network(model, task(name).irreps_out).state_dict(), path)
    content = model.settings(task=name, spacing_mm=SPACING_MM) | settings
    path.with_suffix(".json").write_text(json.dumps(content))
    return path
