"""A training of milliseconds with everything that is saved of a real one: to be killed, resumed and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from dmri_monai.inference.spec import ModelSpec
from dmri_monai.training.checkpoint import Checkpoint
from dmri_monai.training.randomness import SeedEpochs

SPEC = ModelSpec(task="tissue", architecture="plain", l_max=2, order_scale=(1.0, 15.0))
INPUTS = {"settings": {"seed": 0}, "scans": {}}
BATCHES = [torch.ones(4, 96), torch.full((4, 96), 2.0)]
EPOCHS = 8


def training(folder: Path, **options: Any) -> tuple[Engine, nn.Module]:
    """Trainer and network whose random numbers depend on the epoch, as those of the bundle do."""
    torch.manual_seed(0)
    network = nn.Linear(96, 96)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)

    def step(engine: Engine, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        optimizer.zero_grad()
        loss = (network(batch) - torch.randn_like(batch)).square().mean()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    engine = Engine(step)
    SeedEpochs(0).attach(engine)
    stateful = {"optimizer": optimizer}
    Checkpoint(folder, network, stateful, SPEC, inputs=INPUTS, **options).attach(engine)
    return engine, network


def train(folder: Path, epochs: int = EPOCHS, on_epoch: Any = None) -> nn.Module:
    """Begin a training in `folder`, or go on with the one there; returns its network."""
    engine, network = training(folder, resume=(folder / "last.pt").is_file())
    if on_epoch is not None:
        engine.add_event_handler(Events.EPOCH_STARTED, on_epoch)
    engine.run(BATCHES, max_epochs=epochs)
    return network
