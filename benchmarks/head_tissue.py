"""Is the simulation worth something?  A small plain U-Net, trained on streamed heads alone, on real scans.

The network (MONAI's BasicUNet, 16 filters) sees rotation invariants only; it is evidence for the simulator, not a
product. JSON lines every few hundred steps: Dice on simulated heads kept aside; agreement of one head at several
slice angles (share of the voxels of both brains with the same tissue; no labels needed); with --labels, Dice on a
labelled real scan and the share of predicted tissue outside its labels.  Choose by the first two.

Run: python benchmarks/head_tissue.py train CACHE OUT --real FOLDER [--steps 800 --seed 0]
     python benchmarks/head_tissue.py predict CHECKPOINT SCAN OUT.nii.gz
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.nets import BasicUNet
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_dwi, write_nifti
from dmri_monai.phantom.head_bank import HeadSources, head_models
from dmri_monai.phantom.streamed_heads import StreamedHeads, make_head_item
from dmri_monai.qspace.shell_fit import sh_fit_matrix, supported_order

SIZE, CROP, BATCH, KEPT, KEPT_ASIDE = 44, 32, 4, 12, 16  # a scan is cropped from a few times, then forgotten
CHANNELS = 9
PAIRS = (  # one head at two slice angles
    ("sub-canon", "acq-axial", "acq-oblique"), ("sub-canon", "acq-axial", "acq-sagittal"),
    ("sub-canon", "acq-axial", "acq-turned"), ("sub-toshiba", "acq-axial", "acq-oblique"),
    ("sub-siemenssagittal", "dir-AP", "dir-HF"), ("sub-decubitus", "acq-supine", "acq-left"),
)  # fmt: skip
SAME_PLACE = {"acq-oblique", "acq-sagittal", "dir-HF"}  # the head did not move between the scans


def invariants(image: Tensor, bvals: Tensor, bvecs: Tensor, affine: Tensor, level: float = 1.0) -> Tensor:
    """(9, X, Y, Z) of a raw scan (N, X, Y, Z): b0 over its median, S/S0, apparent diffusivity, powers of order 2 and 4,
    b, log n, in-plane and slice spacing.  level: factor of the normalised b0 (augmentation).
    """
    table = GradientTable(bvals, bvecs)
    b0 = image[table.b0_mask].mean(0)
    bright = b0 > 0.25 * float(np.percentile(b0.numpy(), 98))
    b0 = b0 * (level / float(b0[bright].median()))
    shells = [s for s in table.shells() if len(s.indices) >= 6] or list(table.shells())
    shell = min(shells, key=lambda s: abs(s.bval - 1000))
    ratio = image[shell.indices] * (level / float(image[table.b0_mask].mean(0)[bright].median()))
    ratio = (ratio / b0.clamp(min=0.05)).clamp(0, 2) * (b0 > 0.02)
    mean = ratio.mean(0)
    powers = []
    for order in (2, 4):
        if supported_order(table.bvecs[shell.indices], order) < order:
            powers.append(torch.zeros_like(mean))
            continue
        fit = sh_fit_matrix(table.bvecs[shell.indices], order).float()[-(2 * order + 1) :]
        energy = torch.einsum("cn,nxyz->cxyz", fit, ratio).square().sum(0)
        powers.append((energy.sqrt() / (3.5 * mean).clamp(min=0.1)).clamp(max=1.0))
    adc = (-mean.clamp(0.02, 1.2).log() / (shell.bval / 1000)).clamp(-0.5, 3.2) * (b0 > 0.02)
    spacing = sorted(affine[:3, :3].norm(dim=0).tolist())
    constants = [shell.bval / 1000, np.log(len(shell.indices)) / 4, spacing[0] / 2, spacing[2] / 2]
    maps = [b0.clamp(max=4), mean, adc, 3 * powers[0], 3 * powers[1]]
    return torch.stack([*maps, *(torch.full_like(mean, float(c)) for c in constants)])


def network() -> BasicUNet:
    return BasicUNet(
        spatial_dims=3, in_channels=CHANNELS, out_channels=4, features=(16, 16, 32, 64, 128, 16), norm="batch"
    )


def padded(volume: Tensor, size: int) -> Tensor:
    """(C, X, Y, Z), each at least `size`: zeros behind."""
    return functional.pad(volume, [w for n in reversed(volume.shape[1:]) for w in (0, max(size - n, 0))])


def to_pair(item: dict[str, Any], level: float) -> tuple[Tensor, Tensor]:
    """Network input (9, X, Y, Z) and tissue (1, X, Y, Z) of an item."""
    image = item["image"]
    maps = invariants(image.as_tensor(), item["bvals"], item["bvecs"], image.affine, level)
    return padded(maps, CROP), padded(item["label"].as_tensor(), CROP).long()


def cropped(rng: np.random.Generator, pair: tuple[Tensor, Tensor], size: int) -> tuple[Tensor, Tensor]:
    """A random cube of both."""
    at = [int(rng.integers(n - size + 1)) for n in pair[0].shape[1:]]
    part = (slice(None), *(slice(a, a + size) for a in at))
    return pair[0][part], pair[1][part]


def loss_of(logits: Tensor, label: Tensor) -> Tensor:
    """Cross entropy and soft Dice of the three tissues."""
    chances = logits.softmax(1)
    truth = functional.one_hot(label[:, 0], 4).movedim(-1, 1).float()
    both = (chances * truth).sum((0, 2, 3, 4))
    dice = 1 - (2 * both / (chances + truth).sum((0, 2, 3, 4)).clamp(min=1))
    return functional.cross_entropy(logits, label[:, 0]) + dice[1:].mean()


def train(options: argparse.Namespace) -> None:
    models = head_models(options.cache, HeadSources())
    stream = StreamedHeads(
        models, length=options.steps + KEPT, seed=options.seed, size=SIZE, artifact_share=0.2
    )
    aside = []
    for number in range(KEPT_ASIDE):
        pair = to_pair(make_head_item((99, 0, number), models, size=SIZE), 1.0)
        aside.append(cropped(np.random.default_rng(number), pair, CROP))
    torch.manual_seed(options.seed)
    net = network().to(memory_format=torch.channels_last_3d)
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=options.steps, pct_start=0.1)
    rng = np.random.default_rng(options.seed)
    items, began, running = iter(stream), time.process_time(), []
    kept: list[tuple[Tensor, Tensor]] = []
    for step in range(1, options.steps + 1):
        for _ in range(step % 2 if kept else KEPT):  # a new scan every other step
            kept.append(to_pair(next(items), float(np.exp(0.15 * rng.normal()))))
        kept = kept[-KEPT:]
        chosen = [cropped(rng, kept[int(i)], CROP) for i in rng.choice(KEPT, BATCH, replace=False)]
        maps, label = (torch.stack(part) for part in zip(*chosen, strict=True))
        maps = maps.contiguous(memory_format=torch.channels_last_3d)
        net.train()
        loss = loss_of(net(maps), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        running.append(float(loss))
        if step % options.every == 0 or step == options.steps:
            checkpoint = options.out / f"seed{options.seed}-step{step}.pt"
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save(net.state_dict(), checkpoint)
            line = {"step": step, "loss": round(float(np.mean(running[-100:])), 4)}
            line |= {"cpu_s": round(time.process_time() - began), "simulated": simulated_dice(net, aside)}
            line |= on_real(net, options.real, options.labels) if options.real else {}
            print(json.dumps(line), flush=True)


@torch.no_grad()
def simulated_dice(net: BasicUNet, aside: list[tuple[Tensor, Tensor]]) -> list[float]:
    net.eval()
    found = torch.cat([net(maps[None]).argmax(1) for maps, _ in aside])
    return tissue_dice(found.numpy(), torch.cat([label for _, label in aside]).numpy())


def tissue_dice(found: np.ndarray, truth: np.ndarray) -> list[float]:
    return [
        round(
            float(2 * ((found == c) & (truth == c)).sum() / max((found == c).sum() + (truth == c).sum(), 1)),
            4,
        )
        for c in (1, 2, 3)
    ]


@torch.no_grad()
def segmented(net: BasicUNet, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tissue (X, Y, Z) of a scan, and its affine."""
    net.eval()
    image, table = read_dwi(path)
    maps = invariants(image.as_tensor(), table.bvals, table.bvecs, image.affine)
    shape = maps.shape[1:]
    grown = functional.pad(maps, [w for n in reversed(shape) for w in (0, -n % 16)])
    found = net(grown[None]).argmax(1)[0, : shape[0], : shape[1], : shape[2]]
    return found.byte().numpy(), image.affine.numpy()


def on_real(net: BasicUNet, folder: Path, labels: Path | None) -> dict[str, Any]:
    """Agreement of the pairs, and figures against labels of one scan."""
    agreement = {}
    kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for subject, first, second in PAIRS:
        if second not in SAME_PLACE:
            continue
        for name in (first, second):
            if f"{subject}_{name}" not in kept:
                path = folder / subject / "dwi" / f"{subject}_{name}_dwi.nii.gz"
                kept[f"{subject}_{name}"] = segmented(net, path)
        pair = f"{subject} {first} {second}"
        agreement[pair] = agreed(*kept[f"{subject}_{first}"], *kept[f"{subject}_{second}"])
    found: dict[str, Any] = {
        "agreement": agreement,
        "mean_agreement": round(float(np.mean(list(agreement.values()))), 4),
    }
    if labels:
        import nibabel

        truth = np.asarray(nibabel.load(labels).dataobj).astype(int)
        subject = labels.name.split("_")[0]
        tissue, _ = segmented(net, folder / subject / "dwi" / f"{subject}_dwi.nii.gz")
        inside = np.where(truth > 0, tissue, 0)
        dice = tissue_dice(inside, truth)
        found |= {"real": dice, "real_mean": round(float(np.mean(dice)), 4)}
        found["outside"] = round(float(((tissue > 0) & (truth == 0)).sum() / max((tissue > 0).sum(), 1)), 4)
        found["real_whole"] = round(float(np.mean(tissue_dice(tissue, truth))), 4)
    return found


def agreed(first: np.ndarray, affine: np.ndarray, second: np.ndarray, other: np.ndarray) -> float:
    """Share of the voxels of `first` called tissue in both scans, in the world frame, that are the same tissue."""
    index = np.argwhere(first > 0)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    inverse = np.linalg.inv(other)
    place = (world @ inverse[:3, :3].T + inverse[:3, 3]).T
    there = ndimage.map_coordinates(second, place, order=0, mode="constant", cval=255)
    here = first[tuple(index.T)]
    seen = there != 255
    return round(float((here == there)[seen].mean()), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("cache", type=Path)
    training.add_argument("out", type=Path)
    training.add_argument("--real", type=Path)
    training.add_argument("--labels", type=Path)
    training.add_argument("--steps", type=int, default=800)
    training.add_argument("--every", type=int, default=200)
    training.add_argument("--seed", type=int, default=0)
    predicting = commands.add_parser("predict")
    predicting.add_argument("checkpoint", type=Path)
    predicting.add_argument("scan", type=Path)
    predicting.add_argument("out", type=Path)
    options = parser.parse_args()
    if options.command == "train":
        train(options)
    else:
        net = network()
        net.load_state_dict(torch.load(options.checkpoint, weights_only=True))
        tissue, affine = segmented(net, options.scan)
        write_nifti(options.out, MetaTensor(torch.from_numpy(tissue)), torch.from_numpy(affine))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
