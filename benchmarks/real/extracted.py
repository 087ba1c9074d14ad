"""How much of a brain that was extracted, and of a whole head in air of 0, the models of tissue leave to no tissue.

left: share of the voxels with signal, as `FillExtractedBraind` sees it; extracted: whether the model takes the scan for
an extracted brain.  Every scan of the folder three times: the brain that median_otsu finds with 0 around it, the same
with 3 mm more, and the head (`head_mask`) in air of 0.  The last line of a model has the smallest and the largest
`left`, and how many scans are taken for extracted.  `fill_extracted` of the released models lies between them.

Run: python -m benchmarks.real.extracted REAL_FOLDER [--models tissue fractions]
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import defaultdict
from pathlib import Path

import torch
from scipy import ndimage
from torch import Tensor

from dmri_monai import Scan, load_model
from dmri_monai.inference.encoding import SIGNAL
from dmri_monai.inference.model import EXTRACTED
from dmri_monai.prediction import TrainedModel
from dmri_monai.qspace.b0 import brain_mask, head_mask, mean_b0
from dmri_monai.transforms.brain_body import told_tissue

MORE_MM = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("real", type=Path, help="BIDS folder")
    parser.add_argument("--models", nargs="*", default=["tissue", "fractions"])
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    paths = sorted(options.real.glob("sub-*/dwi/*_dwi.nii.gz"))
    for name in options.models:
        model = load_model(name, "cpu")
        plain = model.spec.replace(body_mm=None, fill_extracted=None)
        as_told = TrainedModel(plain, model.network, model.device, model.weights)
        found: dict[str, list[tuple[float, bool]]] = defaultdict(list)
        for path in paths:
            scan = Scan.read(path)
            for kind, there in masks(scan).items():
                masked = Scan.of_arrays(scan.signal * there, scan.table.bvals, scan.table.bvecs, scan.affine)
                pair = left(as_told, masked), EXTRACTED in model.predict(masked).warnings
                found[kind].append(pair)
                line = {"model": name, "scan": path.name, "mask": kind, "left": pair[0], "extracted": pair[1]}
                print(json.dumps(line), flush=True)
        for kind, pairs in found.items():
            shares, taken = zip(*pairs, strict=True)
            bounds = {"least": min(shares), "most": max(shares), "extracted": sum(taken), "scans": len(taken)}
            print(json.dumps({"model": name, "mask": kind, **bounds}), flush=True)


def masks(scan: Scan) -> dict[str, Tensor]:
    b0 = mean_b0(scan.signal, scan.table.bvals, scan.table.b0_threshold)
    brain = brain_mask(b0)
    near = torch.from_numpy(ndimage.distance_transform_edt(~brain.numpy(), scan.spacing_mm) <= MORE_MM)
    return {"median_otsu": brain, f"{MORE_MM:g} mm more": near, "head": head_mask(b0)}


def left(model: TrainedModel, scan: Scan) -> float:
    values = model.predict(scan).image.as_tensor()
    signal = head_mask(mean_b0(scan.signal, scan.table.bvals, scan.table.b0_threshold), SIGNAL)
    return round(float((signal & ~told_tissue(values, "left")).sum() / signal.sum()), 3)


if __name__ == "__main__":
    main()
