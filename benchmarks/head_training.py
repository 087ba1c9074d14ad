"""Train `AnyProtocolUNet` for tissue on streamed heads, from a voxel-wise network; resumable, one core.

What a voxel tells on its own stays as `voxelwise_training.py` made it, on far more voxels and protocols than heads can
show: its features are computed once a crop, and what is told of them, the U-Net and the heads are trained.  One answer
for both tasks: logits of outside, white matter, grey matter and CSF, by cross entropy against the volume fractions and
soft Dice against the classes.  Every `--report` steps a JSON line says the loss and the Dice on simulated heads kept
aside.  A run that was interrupted goes on from the last report.

Run: python benchmarks/head_training.py VOXELWISE.pt CACHE OUT.pt [--anatomy DIR --peaks FILE --fa FILE] [--steps 600]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Orientationd, Spacingd, SpatialPadd
from torch import Tensor, nn
from torch.nn import functional

from dmri_monai.io.writing import replacing
from dmri_monai.networks import AnyProtocolUNet
from dmri_monai.phantom.head_bank import HeadSources, head_models
from dmri_monai.phantom.head_model import HeadModel
from dmri_monai.phantom.streamed_heads import make_head_item
from dmri_monai.qspace.shell_set import shell_irreps
from dmri_monai.transforms import SphericalHarmonicsd

SLOTS, L_MAX, SPACING_MM = 4, 6, 2.5
SIZE, CROP, BATCH = 56, 32, 2
POOL, EVERY, ASIDE = 10, 2, 8  # crops at hand, steps from one new crop to the next, crops to validate on
CLASSES = ("outside", "wm", "gm", "csf")
FROM_VOXELWISE = (3, 0, 1, 2)  # `VoxelwiseNet` tells white matter, grey matter, CSF, other
ASIDE_SEED = 1 << 40
CHUNK = 2048
DECAY = 0.4  # of the steps, over which the learning rate falls

# scalars (P, V) and functions (K, 45, V), float16, and fractions (4, X, Y, Z)
Crop = tuple[Tensor, Tensor, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("voxelwise", type=Path)
    parser.add_argument("cache", type=Path, help="folder of heads, made where it lacks them")
    parser.add_argument("out", type=Path)
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--peaks", type=Path)
    parser.add_argument("--fa", type=Path)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--report", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default="tiny")
    options = parser.parse_args()
    train(options, head_models(options.cache, HeadSources(options.anatomy, options.peaks, options.fa)))


def network_from(state: dict[str, Any], size: str) -> AnyProtocolUNet:
    """A network whose answer is that of the voxel-wise one, before it has learned of any surroundings."""
    network = AnyProtocolUNet(shell_irreps(SLOTS, L_MAX), f"{len(CLASSES)}x0e", size, **state["network"])
    network.load_voxelwise(state["model"])
    turned = network.state_dict()
    for name in ("weight", "bias"):
        rows = state["model"][f"fractions.weights.{name}"][list(FROM_VOXELWISE)]
        turned[f"head.voxel.weights.{name}"] = rows
    network.load_state_dict(turned)
    for parameter in network.voxelwise.parameters():
        parameter.requires_grad = False
    return network


def train(options: argparse.Namespace, models: dict[str, HeadModel]) -> None:
    torch.manual_seed(options.seed)
    network = network_from(torch.load(options.voxelwise, weights_only=True), options.size)
    learned = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=options.rate, weight_decay=1e-4)
    first, seconds = _resumed(options.out, network, optimizer)
    parameters = sum(p.numel() for p in network.parameters())
    print(json.dumps({"parameters": parameters, "heads": sorted(models), "first": first}), flush=True)
    aside = [_crop(network, models, ASIDE_SEED, i) for i in range(ASIDE)]
    pool: deque[Crop] = deque(maxlen=POOL)
    number = first // EVERY  # of the next crop: the pool depends on the step alone
    for i in range(number, number + POOL):
        pool.append(_crop(network, models, options.seed, i))
    started, total = time.perf_counter() - seconds, 0.0
    for step in range(first, options.steps):
        if step % EVERY == 0 and step > first:
            pool.append(_crop(network, models, options.seed, step // EVERY + POOL - 1))
        for group in optimizer.param_groups:
            group["lr"] = options.rate * _schedule(step / options.steps)
        chosen = np.random.default_rng((options.seed, step)).choice(POOL, BATCH, replace=False)
        loss = torch.stack([loss_of(answer(network, pool[i]), pool[i][2][None]) for i in chosen]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        total += float(loss.detach())
        if (step + 1) % options.report == 0 or step + 1 == options.steps:
            seconds = time.perf_counter() - started
            line = {"step": step + 1, "loss": total / options.report, "seconds": seconds}
            print(json.dumps({**line, **_validated(network, aside)}), flush=True)
            total = 0.0
            state = {"network": network_options(options), "model": network.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "step": step + 1, "seconds": seconds}
            with replacing(options.out) as (temporary,):
                torch.save(state, temporary)


def network_options(options: argparse.Namespace) -> dict[str, Any]:
    own: dict[str, Any] = torch.load(options.voxelwise, weights_only=True)["network"]
    return {"size": options.size, "options": own}


def _schedule(done: float) -> float:
    return min(1.0, done / 0.05 + 1e-3) * min(1.0, (1 - done) / DECAY)


def _crop(network: AnyProtocolUNet, models: dict[str, HeadModel], seed: int, number: int) -> Crop:
    """A random cube of a scan of its own, as the product would present it to the network."""
    item = make_head_item((seed, 0, number), models, size=SIZE)
    outside = 1 - item["fractions"].sum(0, keepdim=True)
    both = {**item, "truth": torch.cat([outside, item["fractions"]])}
    keys = ("image", "truth")
    made = Compose([
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=[SPACING_MM] * 3, mode="bilinear"),
        SpatialPadd(keys, [CROP] * 3),
    ])({key: both[key] for key in (*keys, "bvals", "bvecs")})  # fmt: skip
    channels = SphericalHarmonicsd("image", "auto", L_MAX, slots=SLOTS)(made)["image"].as_tensor()
    rng = np.random.default_rng((seed, number))
    at = [int(rng.integers(n - CROP + 1)) for n in channels.shape[1:]]
    part = (slice(None), *(slice(a, a + CROP) for a in at))
    return *features(network, channels[part]), made["truth"].as_tensor()[part].clamp(0, 1)


@torch.no_grad()
def features(network: AnyProtocolUNet, channels: Tensor) -> tuple[Tensor, Tensor]:
    """Scalars and functions of every voxel of channels (C, X, Y, Z); of air, those of an empty voxel."""
    flat = channels.flatten(1).clone()
    air = (flat[1 : 1 + SLOTS] == 0).all(0)
    flat[0, air] = 0.0
    parts = [network.voxelwise(part.unsqueeze(0)) for part in flat.split(CHUNK, dim=1)]
    scalars, functions = (torch.cat(values, dim=-1)[0].half() for values in zip(*parts, strict=True))
    return scalars, functions


def answer(network: AnyProtocolUNet, crop: Crop) -> Tensor:
    """Logits (1, 4, X, Y, Z) from the features of a crop: `AnyProtocolUNet.forward` after its first step."""
    scalars, functions = crop[0].float()[None], crop[1].float()[None]
    told = network.tell(scalars, functions).unflatten(2, crop[2].shape[1:])
    own = network.head["voxel"](scalars, functions).unflatten(2, crop[2].shape[1:])
    levels: nn.ModuleList = network.head["levels"]  # type: ignore[assignment]
    around = levels[0](network.context.features(told)[0])
    return network.combined(own, around)


def loss_of(logits: Tensor, fractions: Tensor) -> Tensor:
    """Cross entropy with the fractions (1, 4, ...), and soft Dice of the tissues with the largest of them."""
    chances = logits.softmax(1)
    entropy = -(fractions * logits.log_softmax(1)).sum(1).mean()
    truth = functional.one_hot(fractions.argmax(1), len(CLASSES)).movedim(-1, 1).float()
    both = (chances * truth).sum((0, 2, 3, 4))
    dice = 1 - (2 * both + 1) / ((chances + truth).sum((0, 2, 3, 4)) + 1)
    return entropy + dice[1:].mean()


@torch.no_grad()
def _validated(network: AnyProtocolUNet, aside: list[Crop]) -> dict[str, Any]:
    """Dice of the voxels of all crops together, of the network and of the voxels on their own."""
    network.eval()
    truth = torch.cat([crop[2].argmax(0).flatten() for crop in aside])
    found = torch.cat([answer(network, crop)[0].argmax(0).flatten() for crop in aside])
    network.train()
    return {
        "dice": {
            name: round(float(2 * ((found == c) & (truth == c)).sum() / ((found == c).sum() + (truth == c).sum())), 4)
            for c, name in enumerate(CLASSES) if c
        }
    }  # fmt: skip


def _resumed(path: Path, network: AnyProtocolUNet, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    network.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], state["seconds"]


if __name__ == "__main__":
    main()
