"""What one streamed head costs, and what it looks like beside real ones.

JSON line: processor seconds per item (mean, median, 90th percentile, largest) at a crop size, and voxels x
volumes. With --figure: simulated scans over real ones (b0, mean diffusion-weighted image, FA; the first slice
through the middle).

Run: python benchmarks/streamed_heads.py CACHE [--size 56 --items 24] [--real FOLDER --figure PNG]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_dwi
from dmri_monai.phantom.head_bank import head_models
from dmri_monai.phantom.streamed_heads import make_head_item
from dmri_monai.qspace.tensor import fit_tensor, tensor_metrics

REAL = (
    "sub-philips2mm/dwi/sub-philips2mm_dwi", "sub-canon/dwi/sub-canon_acq-axial_dwi",
    "sub-toshiba/dwi/sub-toshiba_acq-axial_dwi", "sub-siemenssagittal/dwi/sub-siemenssagittal_dir-AP_dwi",
    "sub-decubitus/dwi/sub-decubitus_acq-supine_dwi", "sub-tilted/dwi/sub-tilted_dwi",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = head_models(options.cache)
    make_head_item((options.seed, 0, 0), models, size=16)  # imports
    seconds, sizes = [], []
    for number in range(options.items):
        began = time.process_time()
        item = make_head_item((options.seed, 0, number), models, size=options.size)
        seconds.append(time.process_time() - began)
        sizes.append(item["image"].numel() / 1e6)
    line = {
        "size": options.size,
        "items": options.items,
        "mean_s": np.mean(seconds),
        "median_s": np.median(seconds),
    }
    line |= {"p90_s": np.percentile(seconds, 90), "max_s": max(seconds), "million_samples": np.mean(sizes)}
    print(json.dumps({key: round(float(value), 3) for key, value in line.items()}), flush=True)
    if options.figure:
        draw(options.figure, models, options.real, options.seed)


def draw(path: Path, models: dict, real: Path | None, seed: int) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [("real", *_real(real / f"{name}.nii.gz")) for name in REAL] if real else []
    for number in range(len(REAL)):
        item = make_head_item((seed, 7, number), models, size=80)
        rows.append(
            (
                "simulated",
                item["image"].as_tensor(),
                GradientTable(item["bvals"], item["bvecs"]),
                item["image"].affine,
            )
        )
    figure, panels = pyplot.subplots(
        6, len(rows) // 2, figsize=(2 * len(rows) // 2, 12), constrained_layout=True
    )
    for number, (kind, image, table, affine) in enumerate(rows):
        column, first = number % len(REAL), 0 if kind == "real" else 3
        for offset, (picture, top) in enumerate(_pictures(image, table, affine)):
            panel = panels[first + offset, column]
            panel.imshow(picture.T, cmap="gray", origin="lower", vmin=0, vmax=top)
            panel.set(xticks=[], yticks=[])
        panels[first, column].set_title(kind)
    figure.savefig(path, dpi=60)


def _real(path: Path) -> tuple[Tensor, GradientTable, Tensor]:
    image, table = read_dwi(path)
    return image.as_tensor(), table, image.affine


def _pictures(image: Tensor, table: GradientTable, affine: Tensor) -> list[tuple[np.ndarray, float]]:
    """The axial slice through the middle of the grid of b0, mean weighted image and FA."""
    codes = affine[:3, :3].abs().argmax(0).tolist()
    axis = codes.index(2)
    part = image.select(axis + 1, image.shape[axis + 1] // 2)
    b0, weighted = part[table.b0_mask].mean(0), part[~table.b0_mask].mean(0)
    fitted = tensor_metrics(
        fit_tensor(part[None, ..., None], table.bvals[None], table.bvecs[None])
    ).fa.squeeze()
    top = float(np.percentile(b0.numpy(), 99.5))
    fa = torch.where(b0 > 0.1 * top, fitted, 0)
    left = [code for code in codes if code != 2]
    pictures = [(b0, top), (weighted, float(np.percentile(weighted.numpy(), 99.5))), (fa, 1.0)]
    return [((p if left == [0, 1] else p.T).numpy(), v) for p, v in pictures]


if __name__ == "__main__":
    with torch.no_grad():
        main()
