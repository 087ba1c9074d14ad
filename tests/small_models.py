"""Untrained tiny models as a training leaves them: model.pt with model.json, for tests of what uses a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.weights import save_model as save

SPACING_MM = (6.0, 6.0, 6.0)


def save_model(path: Path, name: str | None = "tissue", **settings: Any) -> Path:
    """Write a network for the task `name` to `path` and its description beside it; the same weights every time."""
    spec = ModelSpec(**{"size": "tiny", "spacing_mm": SPACING_MM, "task": name, **settings})
    torch.manual_seed(0)
    save(build_network(spec), path, spec)
    return path
