"""Where the training of a benchmark goes on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn


def resumed(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Steps and seconds that `path` holds, whose weights and optimizer state are taken; 0 and 0 without a file."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]
