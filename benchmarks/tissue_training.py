"""Train `InvariantUNet` for tissue on streamed heads; resumable, one core.

One answer for two tasks: logits of outside, white matter, grey matter and CSF, by cross entropy against the volume
fractions and soft Dice against the classes.  Each scan is drawn once and cut into a few cubes; every cube that a step
sees has its contrast changed anew: of its tissues, of its level, and smoothly in space.  Every `--report` steps a JSON
line says the loss and the Dice on simulated heads kept aside, as they are and with twice these changes.  A run that was
interrupted goes on from the last report.

Run: python benchmarks/tissue_training.py CACHE OUT.pt [--anatomy DIR --peaks FILE --fa FILE] [--steps 300]
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Orientationd, Spacingd, SpatialPadd
from torch import Tensor
from torch.nn import functional

from benchmarks.resuming import resumed
from dmri_monai.io.writing import replacing
from dmri_monai.networks import InvariantUNet
from dmri_monai.phantom.head_bank import HeadSources, head_models
from dmri_monai.phantom.head_model import HeadModel
from dmri_monai.phantom.streamed_heads import make_head_item
from dmri_monai.qspace.shell_invariants import shell_invariants
from dmri_monai.qspace.shell_set import shell_irreps
from dmri_monai.transforms import SphericalHarmonicsd

SLOTS, L_MAX, SPACING_MM = 4, 2, 2.5
SIZE, CUBE, CROP, BATCH = 56, 46, 40, 2  # voxels: of a scan, of what is kept of it, of what a step sees
CUBES, POOL, EVERY, ASIDE = (
    3,
    18,
    6,
    3,
)  # cubes per scan and at hand, steps from scan to scan, scans to validate on
CLASSES = ("outside", "wm", "gm", "csf")
ASIDE_SEED = 1 << 40
MOST_DIRECTIONS = 32  # more change little in what is told without directions
DECAY = 0.6  # of the steps, over which the learning rate falls
MAPS = 3  # of the invariants vary in space
# SD of the changes of contrast in training
LEVEL, GAMMA, FIELD, TISSUE, DIFFUSIVITY, ANISOTROPY = 0.15, 0.12, 0.12, 0.15, 0.08, 0.15
NODES = 3  # of smooth fields, along an axis

Cube = tuple[Tensor, Tensor]  # invariants (5, X, Y, Z) and fractions (4, X, Y, Z), float16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, help="folder of heads, made where it lacks them")
    parser.add_argument("out", type=Path)
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--peaks", type=Path)
    parser.add_argument("--fa", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--report", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", default="small")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    train(options, head_models(options.cache, HeadSources(options.anatomy, options.peaks, options.fa)))


def train(options: argparse.Namespace, models: dict[str, HeadModel]) -> None:
    torch.manual_seed(options.seed)
    network = InvariantUNet(shell_irreps(SLOTS, L_MAX), f"{len(CLASSES)}x0e", options.size)
    network = network.to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(network.parameters(), lr=options.rate, weight_decay=1e-4)
    first, seconds = resumed(options.out, network, optimizer)
    parameters = sum(p.numel() for p in network.parameters())
    print(json.dumps({"parameters": parameters, "heads": sorted(models), "first": first}), flush=True)
    aside = [cubes(models, ASIDE_SEED, i)[0] for i in range(ASIDE)]
    pool: deque[Cube] = deque(maxlen=POOL)
    for i in range(
        max(0, first // EVERY - POOL // CUBES + 1), first // EVERY
    ):  # it depends on the step alone
        pool.extend(cubes(models, options.seed, i))
    started, total = time.perf_counter() - seconds, 0.0
    for step in range(first, options.steps):
        if step % EVERY == 0 or step == first:
            pool.extend(cubes(models, options.seed, step // EVERY))
        for group in optimizer.param_groups:
            group["lr"] = options.rate * _schedule(step / options.steps)
        rng = np.random.default_rng((options.seed, step))
        chosen = [varied(cropped(pool[i], rng), rng) for i in rng.choice(len(pool), BATCH, replace=False)]
        maps, truth = (torch.stack(part) for part in zip(*chosen, strict=True))
        network.train()
        loss = loss_of(network.answer(maps.contiguous(memory_format=torch.channels_last_3d)), truth)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        total += float(loss.detach())
        if (step + 1) % options.report == 0 or step + 1 == options.steps:
            seconds = time.perf_counter() - started
            line = {"step": step + 1, "loss": round(total / options.report, 4), "seconds": round(seconds, 1)}
            print(json.dumps({**line, **validated(network, aside)}), flush=True)
            total = 0.0
            state = {"network": {"size": options.size}, "model": network.state_dict()}
            state |= {"optimizer": optimizer.state_dict(), "step": step + 1, "seconds": seconds}
            with replacing(options.out) as (temporary,):
                torch.save(state, temporary)


def _schedule(done: float) -> float:
    return min(1.0, done / 0.05 + 1e-2) * min(1.0, (1 - done) / DECAY)


def cubes(models: dict[str, HeadModel], seed: int, number: int) -> list[Cube]:
    """Cubes of a scan of its own, as the product would present them to the network."""
    item = make_head_item(
        (seed, 0, number), models, size=SIZE, artifact_share=0.2, most_directions=MOST_DIRECTIONS
    )
    outside = 1 - item["fractions"].sum(0, keepdim=True)
    both = {**item, "truth": torch.cat([outside, item["fractions"]])}
    rng, found = np.random.default_rng((seed, number)), []
    for _ in range(CUBES):
        # the level of b0 is that of the whole scan, as in the product
        found.append(_cube({key: both[key] for key in ("image", "truth", "bvals", "bvecs")}, rng))
    return found


def _cube(item: dict[str, Any], rng: np.random.Generator) -> Cube:
    image = item["image"]
    spacing = image.affine[:3, :3].norm(dim=0).tolist()
    part: list[slice] = [slice(None)]
    for n, size in zip(image.shape[1:], spacing, strict=True):
        wanted = min(n, int(CUBE * SPACING_MM / size) + 2)
        at = int(rng.integers(n - wanted + 1))
        part.append(slice(at, at + wanted))
    keys = ("image", "truth")
    made = Compose([
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=[SPACING_MM] * 3, mode="bilinear"),
        SpatialPadd(keys, [CROP] * 3),
    ])({**item, **{key: item[key][tuple(part)] for key in keys}})  # fmt: skip
    # a cube of scalp alone has another median than the scan
    level = _median(image, item["bvals"]) / _median(made["image"], item["bvals"])
    channels = SphericalHarmonicsd("image", "auto", L_MAX, slots=SLOTS)(made)["image"].as_tensor()
    channels[:1] /= level
    maps = shell_invariants(channels[None], SLOTS)[0]
    truth = made["truth"].as_tensor().clamp(0, 1)
    return maps.half(), (truth / truth.sum(0, keepdim=True).clamp(min=1e-3)).half()


def _median(image: Tensor, bvals: Tensor) -> float:
    """What `shell_channels` divides b0 by."""
    from dmri_monai.qspace.b0 import b0_reference, mean_b0

    return float(b0_reference(mean_b0(torch.as_tensor(image), bvals)))


def cropped(cube: Cube, rng: np.random.Generator, size: int = CROP) -> tuple[Tensor, Tensor]:
    """A random part of a cube, mirrored along left-right in one of two."""
    at = [int(rng.integers(n - size + 1)) for n in cube[0].shape[1:]]
    part = (slice(None), *(slice(a, a + size) for a in at))
    maps, truth = cube[0][part].float(), cube[1][part].float()
    return (maps.flip(1), truth.flip(1)) if rng.random() < 0.5 else (maps, truth)


def varied(
    cube: tuple[Tensor, Tensor], rng: np.random.Generator, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Another contrast: each tissue's level of b0 and its diffusion, the level, gamma and smooth fields of all."""
    maps, truth = cube[0].clone(), cube[1]

    def drawn(sd: float, *shape: int) -> Tensor:
        return torch.from_numpy(strength * sd * rng.normal(size=shape)).float()

    inside = truth[1:]
    per_tissue = torch.einsum("c,cxyz->xyz", drawn(TISSUE, 3), inside)
    level = drawn(LEVEL, 1) + _field(drawn(FIELD, NODES, NODES, NODES), maps.shape[1:]) + per_tissue
    gamma = torch.exp(drawn(GAMMA, 1))
    maps[0] = (maps[0].clamp(min=0) ** gamma * torch.exp(level)).clamp(max=4.0)
    signal = maps[1] != 0
    change = torch.einsum("c,cxyz->xyz", drawn(DIFFUSIVITY, 3), inside)
    change += 0.5 * _field(drawn(DIFFUSIVITY, NODES, NODES, NODES), maps.shape[1:])
    maps[1] = maps[1] * torch.exp(change + drawn(DIFFUSIVITY, 1)) * signal
    maps[2] = maps[2] * torch.exp(drawn(ANISOTROPY, 1))
    return maps, truth


def _field(nodes: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    return functional.interpolate(nodes[None, None], tuple(shape), mode="trilinear", align_corners=True)[0, 0]


def loss_of(logits: Tensor, fractions: Tensor) -> Tensor:
    """Cross entropy with the fractions (B, 4, ...), and soft Dice of the tissues with the largest of them."""
    chances = logits.softmax(1)
    entropy = -(fractions * logits.log_softmax(1)).sum(1).mean()
    truth = functional.one_hot(fractions.argmax(1), len(CLASSES)).movedim(-1, 1).float()
    both = (chances * truth).sum((0, 2, 3, 4))
    dice = 1 - (2 * both + 1) / ((chances + truth).sum((0, 2, 3, 4)) + 1)
    return entropy + dice[1:].mean()


@torch.no_grad()
def validated(network: InvariantUNet, aside: list[Cube]) -> dict[str, Any]:
    """Dice of the voxels of all cubes together, as they are and with twice the changes of contrast."""
    network.eval()
    found: dict[str, Any] = {}
    for name, strength in (("dice", 0.0), ("dice_changed", 2.0)):
        pairs = []
        for number, cube in enumerate(aside):
            rng = np.random.default_rng(number)
            maps, truth = varied(cropped(cube, rng), rng, strength)
            pairs.append((network.answer(maps[None])[0].argmax(0), truth.argmax(0)))
        ours, theirs = (torch.cat([pair[i].flatten() for pair in pairs]) for i in (0, 1))
        found[name] = [
            round(
                float(2 * ((ours == c) & (theirs == c)).sum() / ((ours == c).sum() + (theirs == c).sum())), 4
            )
            for c in (1, 2, 3)
        ]
        found[f"{name}_outside"] = round(float(((ours > 0) & (theirs == 0)).sum() / (ours > 0).sum()), 4)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
