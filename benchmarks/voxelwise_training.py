"""Train `VoxelwiseNet` on simulated voxels; resumable, one core.

First `--steps` on the squared error of the density, with voxels drawn anew for every step: the learning rate rises for
3 % of the steps and falls to zero, linearly, over the last `DECAY` of them.  Then `--refine` steps on the error
relative to the density's own power: the squared error hardly counts a fibre that fills a fifth of its voxel, which a
count of fibres does count.  There every batch serves `REUSED` steps, the rate stays, and what is kept is the running
mean of the weights: a run can end, or go on, at any step.

Every `--report` steps a JSON line says the loss, the squared error of the density (l >= 2) relative to that of no
anisotropy, the mean absolute error of the fractions and the throughput.  A run that was interrupted goes on from the
last report.

Run: python benchmarks/voxelwise_training.py OUT.pt [--steps 3000 --refine 2000]
"""

from __future__ import annotations

import argparse
import json
import random
import time
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmri_monai.io.writing import replacing
from dmri_monai.networks.voxelwise import VoxelwiseNet
from dmri_monai.phantom.voxel_signals import Batch, draw_batch

FRACTION_WEIGHT = 5.0  # brings both parts of the loss to about the same size
DECAY = 0.4  # of the steps
REUSED, REMEMBERED = 3, 24  # steps that a batch serves while refining, and how many batches take turns
REFINING_RATE = 0.25  # of the rate
FLOOR, RELATIVE_WEIGHT = (
    0.1,
    0.4,
)  # added to a density's power (a bundle that fills a voxel has 2.3); of its loss
MEAN = 0.995  # of the running mean of the weights, what a step keeps
SLOTS = (4, 8)  # in turn: scans with more shells than slots must be met both ways
VALIDATION_SEED = 1 << 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--refine", type=int, default=0)
    parser.add_argument("--protocols", type=int, default=8, help="per step")
    parser.add_argument("--voxels", type=int, default=128, help="per protocol")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--report", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--network", type=json.loads, default={}, help="parameters of VoxelwiseNet")
    train(parser.parse_args())


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    network = VoxelwiseNet(**options.network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=1e-4)
    kept = deepcopy(network)  # what is saved as the model
    first, seconds = _resumed(options.out, network, kept, optimizer)
    parameters = sum(p.numel() for p in network.parameters())
    last = options.steps + options.refine
    print(json.dumps({"parameters": parameters, "steps": last, "first": first}), flush=True)
    held_out = draw_batch(VALIDATION_SEED, 64, 64)
    started, total = time.perf_counter() - seconds, 0.0
    for step in range(first, last):
        refining = step >= options.steps
        rate = _refining(step - options.steps) if refining else _schedule(step / options.steps)
        for group in optimizer.param_groups:
            group["lr"] = options.rate * rate
        number = options.steps + _turn(step - options.steps) if refining else step
        batch = _drawn((options.seed << 24) + number, options.protocols, options.voxels)
        total += _step(network, optimizer, batch, refining)
        _keep(kept, network, MEAN if refining else 0.0)
        if (step + 1) % options.report == 0 or step + 1 == last:
            seconds = time.perf_counter() - started
            line = {"step": step + 1, "loss": total / options.report, "seconds": seconds}
            print(json.dumps({**line, **_validated(kept, held_out)}), flush=True)
            total = 0.0
            _save(options, network, kept, optimizer, step + 1, seconds)


@lru_cache(maxsize=REMEMBERED)
def _drawn(seed: int, protocols: int, voxels: int) -> Batch:
    return draw_batch(seed, protocols, voxels, slots=SLOTS[seed % len(SLOTS)])


def _turn(step: int) -> int:
    """Which batch serves a step while refining: a new one each `REUSED` steps, else one of the last."""
    newest = step // REUSED
    if step % REUSED == 0:
        return newest
    return random.Random(step).randint(max(0, newest - REMEMBERED + 1), newest)


def _refining(step: int) -> float:
    return REFINING_RATE * min(1.0, (step + 1) / 50)


@torch.no_grad()
def _keep(kept: nn.Module, network: nn.Module, share: float) -> None:
    for old, new in zip(kept.parameters(), network.parameters(), strict=True):
        old.lerp_(new, 1 - share)


def losses(found: Tensor, batch: Batch, relative: bool = False) -> tuple[Tensor, Tensor]:
    """Mean over voxels of the squared error of the density's anisotropic part, and of the fractions."""
    density = (found[0, 1:45] - batch.density[1:]).square().sum(0)
    if relative:
        density = RELATIVE_WEIGHT * density / (batch.density[1:].square().sum(0) + FLOOR)
    density = density.mean()
    fractions = (found[0, 45:] - batch.fractions).square().sum(0).mean()
    return density, fractions


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, relative: bool) -> float:
    density, fractions = losses(network(batch.channels.unsqueeze(0)), batch, relative)
    loss = density + FRACTION_WEIGHT * fractions
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _schedule(done: float) -> float:
    return min(1.0, done / 0.03 + 1e-3) * min(1.0, (1 - done) / DECAY)


@torch.no_grad()
def _validated(network: nn.Module, batch: Batch) -> dict[str, float]:
    found = network(batch.channels.unsqueeze(0))
    density, _ = losses(found, batch)
    relative = density / batch.density[1:].square().sum(0).mean()
    error = (found[0, 45:] - batch.fractions).abs().mean()
    return {"density_error": float(relative), "fraction_error": float(error)}


def _save(
    options: argparse.Namespace,
    network: nn.Module,
    kept: nn.Module,
    optimizer: Any,
    step: int,
    seconds: float,
) -> None:
    state = {"network": options.network, "model": kept.state_dict(), "step": step, "seconds": seconds}
    with replacing(options.out) as (temporary,):
        torch.save({**state, "last": network.state_dict(), "optimizer": optimizer.state_dict()}, temporary)


def _resumed(
    path: Path, network: nn.Module, kept: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state.get("last", state["model"]))
    kept.load_state_dict(state["model"])
    if "optimizer" in state:  # not of weights alone
        optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


if __name__ == "__main__":
    main()
