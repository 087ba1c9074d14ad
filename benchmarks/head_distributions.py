"""Do streamed heads look like real ones?  Rotation invariants of both, side by side, without any labels.

For every scan: signal without weighting over its median in the brain, apparent diffusivity per shell, power of
the orders 2 and 4 over that of order 0, FA, MD, and the noise in air; quantiles inside a mask of the brain
(median_otsu, on both kinds) and in the 15 mm around it.  JSON lines: per statistic the real heads' least, median
and largest value, the simulated heads' 5th, 50th and 95th percentile, the mean rank of real heads among simulated
ones (0 to 1), and the share of real heads outside the simulated 2nd to 98th percentile (`outside`; `score` is its
mean over all).  Chance is 0.04.

Run: python benchmarks/head_distributions.py CACHE REAL_FOLDER [--anatomy DIR] [--peaks FILE --fa FILE] [--figure PNG]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from dipy.segment.mask import median_otsu
from scipy import ndimage
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_dwi
from dmri_monai.phantom.head_bank import HeadSources, head_models
from dmri_monai.phantom.streamed_heads import make_head_item
from dmri_monai.qspace.shell_fit import sh_fit_matrix, supported_order
from dmri_monai.qspace.tensor import fit_tensor, tensor_metrics

SIZE = 80  # voxels an axis of the simulated scans: whole heads
INSIDE, AROUND = (5, 25, 50, 75, 95), (25, 50, 75, 95)
AROUND_MM = 15.0
BOUNDS = (2, 98)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("real", type=Path, help="BIDS folder")
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--peaks", type=Path)
    parser.add_argument("--fa", type=Path)
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    models = head_models(options.cache, HeadSources(options.anatomy, options.peaks, options.fa))
    real = [statistics(image.as_tensor(), table, image.affine) for image, table in real_scans(options.real)]
    simulated = []
    for number in range(options.heads):
        item = make_head_item((options.seed, 0, number), models, size=SIZE)
        table = GradientTable(item["bvals"], item["bvecs"])
        simulated.append(statistics(item["image"].as_tensor(), table, item["image"].affine))
    rows = compared(real, simulated)
    for name, row in rows.items():
        print(json.dumps({"statistic": name, **row}), flush=True)
    print(json.dumps({"score": round(float(np.mean([row["outside"] for row in rows.values()])), 3)}))
    if options.figure:
        draw(options.figure, real, simulated)


def real_scans(folder: Path) -> Iterator[tuple]:
    for path in sorted(folder.glob("sub-*/dwi/*_dwi.nii.gz")):
        yield read_dwi(path)


def statistics(image: Tensor, table: GradientTable, affine: Tensor) -> dict[str, float]:
    """Name -> value of one scan (N, X, Y, Z); NaN for what its protocol does not tell."""
    spacing = affine[:3, :3].norm(dim=0).tolist()
    b0 = image[table.b0_mask].mean(0)
    brain, around, air = _places(b0.numpy(), spacing)
    level = float(b0[brain].median())
    found: dict[str, float] = {}
    found |= _quantiles("b0", b0[brain] / level, INSIDE) | _quantiles("around_b0", b0[around] / level, AROUND)
    if air.any():
        found["air_b0"] = float(b0[air].median()) / level
    for number, shell in enumerate(table.shells()[:1]):
        ratio = image[shell.indices] / b0.clamp(min=0.02 * level)
        mean = ratio.mean(0).clamp(1e-3, 2)
        decay = -mean.log() / (shell.bval / 1000)
        found |= _quantiles(f"adc{number}", decay[brain], INSIDE)
        found |= _quantiles(f"around_adc{number}", decay[around], AROUND)
        for order in (2, 4):
            found |= _power(ratio[:, brain], table.bvecs[shell.indices], order)
    tensor = tensor_metrics(fit_tensor(image[None], table.bvals[None], table.bvecs[None]))
    fa, md = tensor.fa[0].squeeze(), tensor.md[0].squeeze()
    found |= _quantiles("fa", fa[brain].nan_to_num(), INSIDE)
    found |= _quantiles("around_fa", fa[around].nan_to_num(), AROUND)
    found |= _quantiles("md", 1000 * md[brain].nan_to_num(), INSIDE)
    return found


def _places(b0: np.ndarray, spacing: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Bool (X, Y, Z): the brain, what lies up to 15 mm around it, and air far off."""
    _, mask = median_otsu(b0, median_radius=2, numpass=1)
    labels, n = ndimage.label(ndimage.binary_opening(mask, iterations=1))
    if n:
        mask = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    distance = ndimage.distance_transform_edt(~mask, spacing)
    places = mask, (distance > 2.0) & (distance < AROUND_MM), distance > 2.5 * AROUND_MM
    brain, around, air = (torch.from_numpy(place) for place in places)
    return brain, around, air


def _quantiles(name: str, values: Tensor, levels: tuple[int, ...]) -> dict[str, float]:
    if not values.numel():
        return {}
    array = np.percentile(values.numpy(), levels)
    return {f"{name}_{q}": float(v) for q, v in zip(levels, array, strict=True)}


def _power(ratio: Tensor, bvecs: Tensor, order: int) -> dict[str, float]:
    """Quantiles of the power of `order` over that of order 0, of S/S0 (M, P) on one shell."""
    if supported_order(bvecs, order) < order:
        return {}
    coefficients = sh_fit_matrix(bvecs, order).float() @ ratio.clamp(0, 2)
    size = 2 * order + 1
    relative = coefficients[-size:].square().sum(0) / coefficients[0].square().clamp(min=1e-6)
    return _quantiles(f"power{order}", relative.clamp(max=4), (25, 50, 75, 95))


def compared(real: list[dict[str, float]], simulated: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    rows = {}
    for name in real[0]:
        have = np.array([r[name] for r in real if name in r])
        made = np.array([s[name] for s in simulated if name in s])
        low, high = np.percentile(made, BOUNDS)
        row = dict(
            zip(
                ("real_min", "real_median", "real_max"),
                (have.min(), np.median(have), have.max()),
                strict=True,
            )
        )
        row |= dict(zip(("sim_5", "sim_50", "sim_95"), np.percentile(made, (5, 50, 95)), strict=True))
        row["rank"] = float(np.mean([(made < value).mean() for value in have]))
        row["below"], row["above"] = float((have < low).mean()), float((have > high).mean())
        row["outside"] = row["below"] + row["above"]
        rows[name] = {key: round(float(value), 3) for key, value in row.items()}
    return rows


def draw(path: Path, real: list[dict[str, float]], simulated: list[dict[str, float]]) -> None:
    """One axis per statistic: simulated values as a box, real heads as dots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(real[0])
    columns = 8
    figure, panels = pyplot.subplots(
        -(-len(names) // columns), columns, figsize=(2.0 * columns, 2.0 * -(-len(names) // columns)),
        constrained_layout=True,
    )  # fmt: skip
    for panel, name in zip(panels.flat, names, strict=False):
        panel.boxplot([s[name] for s in simulated if name in s], whis=BOUNDS, showfliers=False, widths=0.6)
        have = [r[name] for r in real if name in r]
        panel.plot(np.linspace(1.35, 1.45, len(have)), have, "r.", markersize=4)
        panel.set(title=name, xticks=[])
    for panel in panels.flat[len(names) :]:
        panel.axis("off")
    figure.savefig(path, dpi=70)


if __name__ == "__main__":
    with torch.no_grad():
        main()
