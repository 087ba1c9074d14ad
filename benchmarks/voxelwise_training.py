"""Train `VoxelwiseNet` on simulated voxels drawn anew for every step; resumable, one core.

The learning rate rises for 3 % of the steps and falls to zero, linearly, over the last `DECAY` of them: until then a
run that goes on with other `--steps` is as good as one that was begun with them.  Every `--report` steps a JSON line
says the loss, the squared error of the density (l >= 2) relative to that of no anisotropy, the mean absolute error of
the fractions and the throughput.  A run that was interrupted goes on from the last report.

Run: python benchmarks/voxelwise_training.py OUT.pt [--steps 3000]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.resuming import resumed
from dmri_monai.io.writing import replacing
from dmri_monai.networks.voxelwise import VoxelwiseNet
from dmri_monai.phantom.voxel_signals import Batch, draw_batch

FRACTION_WEIGHT = 5.0  # brings both parts of the loss to about the same size
DECAY = 0.4  # of the steps
SLOTS = (4, 8)  # in turn: scans with more shells than slots must be met both ways
VALIDATION_SEED = 1 << 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
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
    first, seconds = resumed(options.out, network, optimizer)
    parameters = sum(p.numel() for p in network.parameters())
    print(json.dumps({"parameters": parameters, "steps": options.steps, "first": first}), flush=True)
    rescaled = network.deconvolution
    held_out = draw_batch(VALIDATION_SEED, 64, 64, rescaled=rescaled)
    started, total = time.perf_counter() - seconds, 0.0
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * _schedule(step / options.steps)
        seed = (options.seed << 24) + step
        slots = SLOTS[step % len(SLOTS)]
        batch = draw_batch(seed, options.protocols, options.voxels, slots=slots, rescaled=rescaled)
        total += _step(network, optimizer, batch)
        if (step + 1) % options.report == 0 or step + 1 == options.steps:
            seconds = time.perf_counter() - started
            done = (step + 1) * options.protocols * options.voxels
            line = {
                "step": step + 1,
                "loss": total / options.report,
                "seconds": seconds,
                "voxels_per_s": done / seconds,
            }
            print(json.dumps({**line, **_validated(network, held_out)}), flush=True)
            total = 0.0
            _save(options, network, optimizer, step + 1, seconds)


def losses(found: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean over voxels of the squared error of the density's anisotropic part, and of the fractions."""
    density = (found[0, 1:45] - batch.density[1:]).square().sum(0).mean()
    fractions = (found[0, 45:] - batch.fractions).square().sum(0).mean()
    return density, fractions


def _step(network: VoxelwiseNet, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    density, fractions = losses(network.learned(batch.channels.unsqueeze(0))[0], batch)
    loss = density + FRACTION_WEIGHT * fractions
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


def _schedule(done: float) -> float:
    return min(1.0, done / 0.03 + 1e-3) * min(1.0, (1 - done) / DECAY)


@torch.no_grad()
def _validated(network: VoxelwiseNet, batch: Batch) -> dict[str, float]:
    found = network.learned(batch.channels.unsqueeze(0))[0]
    density, _ = losses(found, batch)
    relative = density / batch.density[1:].square().sum(0).mean()
    error = (found[0, 45:] - batch.fractions).abs().mean()
    return {"density_error": float(relative), "fraction_error": float(error)}


def _save(options: argparse.Namespace, network: nn.Module, optimizer: Any, step: int, seconds: float) -> None:
    state = {"network": options.network, "model": network.state_dict(), "optimizer": optimizer.state_dict()}
    with replacing(options.out) as (temporary,):
        torch.save({**state, "step": step, "seconds": seconds}, temporary)


if __name__ == "__main__":
    main()
