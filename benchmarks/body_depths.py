"""At which depth of an opening the largest body of the predicted tissue is the brain; JSON lines, one per depth.

On whole simulated heads that no training has seen: Dice of WM, GM and CSF inside the brain, the share of the tissue
that lies outside of it (outside_far: and not beside it; worst: of one scan) and the share of the brain that is missed,
means of the scans.  A depth of null keeps all that the network tells, 0 its largest body without an opening.

Run: python -m benchmarks.body_depths CACHE [MODEL] [--anatomy DIR --peaks FILE --fa FILE] [--heads 16]
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from benchmarks.real.heads import against, classes
from benchmarks.tissue_training import ASIDE_SEED, MOST_DIRECTIONS
from dmri_monai import Scan
from dmri_monai.inference.model import TrainedModel
from dmri_monai.phantom.head_bank import HeadSources, head_models
from dmri_monai.phantom.head_model import HeadModel
from dmri_monai.phantom.streamed_heads import make_head_item
from dmri_monai.prediction import load_model
from dmri_monai.transforms import KeepBrainBodyd

DEPTHS_MM = (None, 0.0, 3.0, 5.0, 7.0)
SIZE = 80  # voxels: a whole head at most voxel sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, help="folder of heads, made where it lacks them")
    parser.add_argument("model", nargs="?", default="tissue", help="of task tissue or fractions")
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--peaks", type=Path)
    parser.add_argument("--fa", type=Path)
    parser.add_argument("--heads", type=int, default=16, help="each of a scan of its own")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    model = load_model(options.model, "cpu")
    if not model.task.one_body:
        parser.error(f"{options.model} is of task {model.task.name}, expected tissue or fractions")
    whole = TrainedModel(
        model.spec.replace(body_mm=None, fill_extracted=None), model.network, model.device, model.weights
    )
    heads = head_models(options.cache, HeadSources(options.anatomy, options.peaks, options.fa))
    found: dict[float | None, list[dict[str, Any]]] = {depth: [] for depth in DEPTHS_MM}
    for number in range(options.heads):
        for depth, line in measured(whole, heads, number).items():
            found[depth].append(line)
    for depth, lines in found.items():
        print(json.dumps({"depth_mm": depth, **summary(lines)}), flush=True)


def measured(
    model: TrainedModel, heads: dict[str, HeadModel], number: int
) -> dict[float | None, dict[str, Any]]:
    """For each depth, what :func:`benchmarks.real.heads.against` says of one scan."""
    item = make_head_item(
        (ASIDE_SEED, 0, number), heads, size=SIZE, artifact_share=0.2, most_directions=MOST_DIRECTIONS
    )
    image = model.predict(Scan.of_arrays(item["image"], item["bvals"], item["bvecs"])).image
    truth = item["label"][0].numpy().astype(int)
    return {depth: against(told(image, depth), truth) for depth in DEPTHS_MM}


def told(image: MetaTensor, depth: float | None) -> np.ndarray:
    """(X, Y, Z) class numbers of a prediction (C, X, Y, Z)."""
    kept = image if depth is None else KeepBrainBodyd("pred", depth)({"pred": image})["pred"]
    values = kept.as_tensor().numpy()
    return values[0].astype(int) if len(values) == 1 else classes(values)


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    dice = np.mean([line["dice"] for line in lines], axis=0)
    shares = {
        name: round(float(np.mean([line[name] for line in lines])), 4)
        for name in ("mean", "outside", "outside_far", "missed")
    }
    return {
        "dice": [round(float(d), 4) for d in dice],
        **shares,
        "worst": max(line["outside"] for line in lines),
    }


if __name__ == "__main__":
    main()
