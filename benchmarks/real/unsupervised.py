"""Fine-tune `VoxelwiseNet` on real scans without labels, by `SphericalDeconvolutionLoss`; `compare.py` measures it.

Every step takes one scan and one part of its measurements (as `compare.py` does: all, a shell alone, half of a single
shell), drawn by `--seed`, and some of its voxels.  Scans: `small_64D` and `small_101D` (DIPY's samples), folders with
`dwi.nii.gz`, and files of whole heads.  A JSON line every 50 steps, then the loss on all voxels before and after.

Run: python -m benchmarks.real.unsupervised NETWORK.pt OUT.pt SCAN ... [--steps 200]
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.real.compare import load, parts, scans
from benchmarks.real.rivals import Scan
from dmri_monai.io import read_dwi
from dmri_monai.io.writing import replacing
from dmri_monai.losses import SphericalDeconvolutionLoss
from dmri_monai.networks.voxelwise import VoxelwiseNet
from dmri_monai.qspace.b0 import brain_mask, mean_b0
from dmri_monai.qspace.shell_set import shell_channels, shell_set

SAMPLES = ("small_64D", "small_101D")
REPORT = 50
MOST = 20000  # voxels of a scan: enough, and they fit into memory


@dataclass(frozen=True)
class Part:
    """Channels (C, V) of some of a scan's measurements."""

    scan: str
    name: str
    channels: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("scans", nargs="+", help="DIPY's samples, folders, files")
    parser.add_argument("--parts", nargs="*", help="only these, such as all, half, b1000")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--voxels", type=int, default=1024, help="per step")
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loss", type=json.loads, default={}, help="parameters of the loss")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    network = load(options.network)
    chosen = [
        part
        for name, scan in found_scans(options.scans)
        for part in encoded(name, scan, network.deconvolution, options.seed)
        if not options.parts or part.name in options.parts
    ]
    loss = SphericalDeconvolutionLoss(**options.loss)
    before = measured(network, loss, chosen)
    train(network, loss, chosen, options)
    after = measured(network, loss, chosen)
    for part, first, last in zip(chosen, before, after, strict=True):
        line = {"scan": part.scan, "part": part.name, "voxels": part.channels.shape[1]}
        print(json.dumps({**line, "loss_before": first, "loss_after": last}), flush=True)
    state = torch.load(options.network, weights_only=True)
    with replacing(options.out) as (temporary,):
        torch.save({"network": state["network"], "model": network.state_dict()}, temporary)


def found_scans(names: list[str]) -> Iterator[tuple[str, Scan]]:
    folders = [Path(name) for name in names if Path(name).is_dir()]
    for name, scan in scans(folders):
        if name not in SAMPLES or name in names:
            yield name, scan
    for path in (Path(name) for name in names if name not in SAMPLES and not Path(name).is_dir()):
        image, table = read_dwi(path)
        signal = image.as_tensor()
        inside = brain_mask(mean_b0(signal, table.bvals))
        yield path.name.removesuffix("_dwi.nii.gz"), Scan(signal, table, inside, image.affine)


def encoded(name: str, scan: Scan, rescaled: bool, seed: int) -> Iterator[Part]:
    response: Literal["scan"] | None = "scan" if rescaled else None
    generator = torch.Generator().manual_seed(seed)
    for part, rows in parts(scan):
        own = scan.select(rows)
        shells = shell_set(own.table.bvals, own.table.bvecs)
        channels = shell_channels(own.image, own.table.bvals, shells, brain=own.mask[None], response=response)
        inside = channels[:, own.mask]
        yield Part(name, part, inside[:, torch.randperm(inside.shape[1], generator=generator)[:MOST]])


def train(network: VoxelwiseNet, loss: nn.Module, chosen: list[Part], options: argparse.Namespace) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=options.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    generator = torch.Generator().manual_seed(options.seed)
    began, total = time.perf_counter(), 0.0
    for step in range(options.steps):
        part = chosen[int(torch.randint(len(chosen), (), generator=generator))]
        rows = torch.randint(part.channels.shape[1], (options.voxels,), generator=generator)
        value = error(network, loss, part.channels[:, rows])
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += float(value.detach())
        if (step + 1) % REPORT == 0:
            line = {
                "step": step + 1,
                "loss": total / REPORT,
                "seconds": round(time.perf_counter() - began, 1),
            }
            print(json.dumps(line), flush=True)
            total = 0.0


def error(network: VoxelwiseNet, loss: nn.Module, channels: Tensor) -> Tensor:
    """The loss of voxels (C, V), which lie in a row: the world frame, as in `compare.py`."""
    batch = channels[None, :, :, None, None]
    value: Tensor = loss(network(batch)[:, :45], batch)
    return value


@torch.no_grad()
def measured(network: VoxelwiseNet, loss: nn.Module, chosen: list[Part]) -> list[float]:
    return [float(error(network, loss, part.channels)) for part in chosen]


if __name__ == "__main__":
    main()
