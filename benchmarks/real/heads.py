"""Tissue of whole real heads: released models, own checkpoints and k-means on the same voxels, as JSON lines.

dice: of WM, GM and CSF against labels of the scan, inside the brain (the labels); mean: of the three; mean_largest:
against the largest body of the labels alone, as eyes and other bodies apart are no brain, whatever labels call them.
r: correlation there of the fractions of WM, GM and CSF, 0 or 1 of methods that tell classes alone, with the labels; 0
for a class that is never told.  outside: share of the predicted tissue that lies outside of the labels, outside_far:
and not beside them; missed: share of the labelled voxels that are called no tissue.  Of scans without labels: litres of
tissue, and outside_mask, what lies off median_otsu's brain.
Per pair of scans of one head: agreement, the share of the voxels called tissue in one scan, and seen in the other, that
are the same tissue there (mean of both ways, world frame); it asks for no labels; registered: the same after the second
head was laid on the first, rigidly.  Methods: models with their names; one with `+shuffled` gets the b-vectors in
another order, one with `+extracted` the brain that median_otsu finds and 0 around it; `kmeans`: clusters of b0, FA and
MD inside the labels, else inside median_otsu's mask.  slab_mm: thickness of an axial slab that was cut out of the head,
about its middle.

Run: python -m benchmarks.real.heads REAL_FOLDER [--models tissue runs/tissue.pt kmeans] [--figure PNG]
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from scipy import ndimage

from benchmarks.real import rivals
from benchmarks.real.registration import rigid
from dmri_monai import Scan, load_model
from dmri_monai.gradients import GradientTable
from dmri_monai.prediction import released_models
from dmri_monai.qspace.b0 import brain_mask

PAIRS = (  # one head, twice; it lay still in between
    ("sub-canon", "acq-axial", "acq-oblique"), ("sub-canon", "acq-axial", "acq-sagittal"),
    ("sub-toshiba", "acq-axial", "acq-oblique"), ("sub-siemenssagittal", "dir-AP", "dir-HF"),
)  # fmt: skip
TISSUES = (1, 2, 3)
UNSEEN = 255
BORDER = 1  # voxels: the labels end at the brain or at the skull


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("real", type=Path, help="BIDS folder; labels in derivatives/*/sub-*/anat")
    parser.add_argument("--models", nargs="*", default=["tissue", "tissue+shuffled", "fractions", "kmeans"])
    parser.add_argument("--no-pairs", action="store_true")
    parser.add_argument(
        "--slabs", nargs="*", type=float, default=[], help="mm: slabs of the labelled heads, too"
    )
    parser.add_argument("--figure", type=Path, help="picture of every scan, three slices each")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    shown: dict[str, dict[str, np.ndarray]] = {}
    for path in sorted(options.real.glob("derivatives/*/sub-*/anat/*_dseg.nii.gz")):
        subject = path.name.split("_")[0]
        scan = Scan.read(options.real / subject / "dwi" / f"{subject}_dwi.nii.gz")
        truth = np.asarray(nibabel.load(path).dataobj).astype(int)
        shown[subject] = {"b0": mean_b0(scan), "labels": truth}
        for method in options.models:
            began = time.perf_counter()
            fractions = told(method, scan, truth > 0)
            found = classes(fractions)
            line = {
                "scan": subject,
                "method": method,
                **against(found, truth),
                "r": related(fractions, truth),
            }
            print(json.dumps({**line, "seconds": round(time.perf_counter() - began, 1)}), flush=True)
            shown[subject][method] = found
            for thickness in options.slabs:
                part = slab(truth, scan.spacing_mm[2], thickness)
                found = classes(told(method, cut(scan, part), truth[..., part] > 0))
                line = {"scan": subject, "method": method, "slab_mm": thickness}
                print(json.dumps({**line, **against(found, truth[..., part])}), flush=True)
    moves: dict[str, np.ndarray] = {}
    for method in [] if options.no_pairs else options.models:
        kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        scans: dict[str, Scan] = {}
        values, laid = [], []
        for subject, *names in PAIRS:
            for name in names:
                key = f"{subject}_{name}"
                if key not in kept:
                    scan = Scan.read(options.real / subject / "dwi" / f"{key}_dwi.nii.gz")
                    scans[key] = scan
                    kept[key] = classes(told(method, scan, None)), scan.affine.numpy()
                    shown.setdefault(key, {"b0": mean_b0(scan)})[method] = kept[key][0]
                    line = {"scan": key, "method": method, **unlabelled(kept[key][0], scan)}
                    print(json.dumps(line), flush=True)
            first, second = (kept[f"{subject}_{name}"] for name in names)
            pair = " ".join((subject, *names))
            if pair not in moves:
                moves[pair] = rigid(*(scans[f"{subject}_{name}"] for name in names))
            values.append(agreement(first, second))
            laid.append(agreement(first, (second[0], np.linalg.inv(moves[pair]) @ second[1])))
            line = {"pair": pair, "method": method, "agreement": values[-1], "registered": laid[-1]}
            print(json.dumps(line), flush=True)
        mean = {"agreement": round(float(np.mean(values)), 4), "registered": round(float(np.mean(laid)), 4)}
        print(json.dumps({"pair": "mean", "method": method, **mean}), flush=True)
    if options.figure:
        draw(options.figure, shown)


def slab(truth: np.ndarray, spacing_mm: float, thickness: float) -> slice:
    """Slices about the middle of the labels."""
    labelled = np.flatnonzero(truth.any((0, 1)))
    count = max(1, round(thickness / spacing_mm))
    first = max(0, int(labelled.mean() - count / 2))
    return slice(first, first + count)


def cut(scan: Scan, part: slice) -> Scan:
    affine = scan.affine.clone()
    affine[:3, 3] += part.start * affine[:3, 2]
    return Scan.of_arrays(scan.signal[..., part], scan.table.bvals, scan.table.bvecs, affine)


def mean_b0(scan: Scan) -> np.ndarray:
    found: np.ndarray = scan.signal[scan.table.b0_mask].mean(0).numpy()
    return found


def told(method: str, scan: Scan, brain: np.ndarray | None) -> np.ndarray:
    """(3, X, Y, Z) fractions of WM, GM and CSF that one method tells; of classes, 0 and 1."""
    name, *changes = method.split("+")
    if name == "kmeans":
        inside = torch.from_numpy(brain) if brain is not None else brain_mask(torch.from_numpy(mean_b0(scan)))
        numbers = np.zeros(scan.signal.shape[1:], int)
        tissue = rivals.kmeans(rivals.Scan(scan.signal, scan.table, inside, scan.affine)).tissue
        assert tissue is not None
        numbers[inside.numpy()] = tissue.numpy() + 1
        return _one_hot(numbers)
    if "extracted" in changes:
        brain_there = brain_mask(torch.from_numpy(mean_b0(scan)))
        scan = Scan.of_arrays(scan.signal * brain_there, scan.table.bvals, scan.table.bvecs, scan.affine)
    model = load_model(name if name in released_models() else Path(name), "cpu")
    if "shuffled" in changes:
        order = torch.arange(len(scan.table))
        weighted = torch.nonzero(~scan.table.b0_mask).flatten()
        order[weighted] = weighted[torch.randperm(len(weighted), generator=torch.Generator().manual_seed(0))]
        scan = Scan(scan.image, GradientTable(scan.table.bvals, scan.table.bvecs[order]), scan.path)
    values = model.predict(scan).values.numpy()
    return values if model.spec.task == "fractions" else _one_hot(values.astype(int))


def _one_hot(numbers: np.ndarray) -> np.ndarray:
    return np.stack([numbers == c for c in TISSUES]).astype(np.float32)


def classes(fractions: np.ndarray) -> np.ndarray:
    """(X, Y, Z) class numbers, 0 to 3: the largest of the fractions and what they leave."""
    found: np.ndarray = np.concatenate([1 - fractions.sum(0, keepdims=True), fractions]).argmax(0)
    return found


def related(fractions: np.ndarray, truth: np.ndarray) -> list[float]:
    inside = truth > 0
    pairs = ((part[inside], truth[inside] == c) for part, c in zip(fractions, TISSUES, strict=True))
    with np.errstate(invalid="ignore"):  # of a class that is never told
        return [round(float(np.nan_to_num(np.corrcoef(part, label)[0, 1])), 3) for part, label in pairs]


def against(found: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    bodies, _ = ndimage.label(truth > 0)
    largest = np.where(bodies == 1 + np.argmax(np.bincount(bodies.ravel())[1:]), truth, 0)
    dice = _dice(found, truth)
    return {
        "dice": [round(float(d), 3) for d in dice],
        "mean": round(float(np.mean(dice)), 4),
        "mean_largest": round(float(np.mean(_dice(found, largest))), 4),
        "outside": _share((found > 0) & (truth == 0), found > 0),
        "outside_far": _share(
            (found > 0) & ~ndimage.binary_dilation(truth > 0, iterations=BORDER), found > 0
        ),
        "missed": _share((found == 0) & (truth > 0), truth > 0),
    }


def _dice(found: np.ndarray, truth: np.ndarray) -> list[float]:
    inside = np.where(truth > 0, found, 0)
    return [
        float(2 * ((inside == c) & (truth == c)).sum() / max((inside == c).sum() + (truth == c).sum(), 1))
        for c in TISSUES
    ]


def unlabelled(found: np.ndarray, scan: Scan) -> dict[str, float]:
    """What needs no labels: litres of tissue, and what of it lies off the brain that median_otsu finds."""
    near = ndimage.binary_dilation(brain_mask(torch.from_numpy(mean_b0(scan))).numpy(), iterations=BORDER)
    litres = (found > 0).sum() * np.prod(scan.spacing_mm) / 1e6
    return {"litres": round(float(litres), 2), "outside_mask": _share((found > 0) & ~near, found > 0)}


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    return round(float(part.sum() / max(whole.sum(), 1)), 4)


Placed = tuple[np.ndarray, np.ndarray]  # class numbers and the affine of their grid


def agreement(first: Placed, second: Placed) -> float:
    return round((_same(*first, *second) + _same(*second, *first)) / 2, 4)


def _same(here: np.ndarray, affine: np.ndarray, there: np.ndarray, other: np.ndarray) -> float:
    index = np.argwhere(here > 0)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    inverse = np.linalg.inv(other)
    place = (world @ inverse[:3, :3].T + inverse[:3, 3]).T
    seen = ndimage.map_coordinates(there, place, order=0, mode="constant", cval=UNSEEN)
    return float((here[tuple(index.T)] == seen)[seen != UNSEEN].mean())


def draw(path: Path, shown: dict[str, dict[str, np.ndarray]]) -> None:
    """One row per scan and method, nine slices across the third axis of its grid."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [(scan, name, volume) for scan, maps in shown.items() for name, volume in maps.items()]
    columns = 9
    figure, panels = pyplot.subplots(
        len(rows), columns, figsize=(1.5 * columns, 1.6 * len(rows)), constrained_layout=True, squeeze=False
    )
    for line, (scan, name, volume) in zip(panels, rows, strict=True):
        top = np.percentile(volume, 99.5) if name == "b0" else 3
        for panel, k in zip(line, np.linspace(0.1, 0.9, columns), strict=True):
            part = volume[:, :, round(k * (volume.shape[2] - 1))].T
            panel.imshow(part, cmap="gray" if name == "b0" else "viridis", origin="lower", vmin=0, vmax=top)
            panel.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{scan}\n{name}", fontsize=6)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
