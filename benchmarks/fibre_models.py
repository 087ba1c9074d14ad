"""Main direction and number of fibres of simulated heads, by models of any of the tasks that tell them, as JSON lines.

angle_deg, within_10: median angle to the truth's largest peak, and share within 10 degrees, where the truth has one;
macro_f1: of the number of fibres, over all voxels.  One line per head and model, one of their means per model.

Run: python -m benchmarks.fibre_models DATA [--models orientation crossings model.pt ...] [--subjects 01 02 ...]; DATA:
folder that `dmri-monai phantom` wrote
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from pathlib import Path
from typing import Any

import torch

from dmri_monai.inference.result import Prediction
from dmri_monai.io import read_nifti, subjects
from dmri_monai.metrics import AngularError, ClassificationScore
from dmri_monai.prediction import load_model
from dmri_monai.scan import Scan

LABELS = {"peaks": "peaks", "npeaks": "npeaks"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", nargs="+", default=["orientation", "crossings"])
    parser.add_argument("--subjects", nargs="*", help="only these")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    items = subjects(options.data, {"all": 1.0}, labels=LABELS)["all"]
    for name in options.models:
        model, lines = load_model(name), []
        for item in items:
            if options.subjects and item["subject"] not in options.subjects:
                continue
            lines.append(measured(model.predict(Scan.read(item["image"])), item))
            print(json.dumps({"model": name, "subject": item["subject"], **lines[-1]}), flush=True)
        means = {key: round(statistics.mean(line[key] for line in lines), 4) for key in lines[0]}
        print(json.dumps({"model": name, "subjects": len(lines), **means}), flush=True)


def measured(found: Prediction, item: dict[str, Any]) -> dict[str, float]:
    """What the prediction tells, against the truth beside the scan."""
    line: dict[str, float] = {}
    if found.task in ("orientation", "fod"):
        angles = AngularError()(found.peaks()[None, :3], read_nifti(item["peaks"]).as_tensor()[None])[0]
        line |= {"angle_deg": float(angles[0]), "within_10": float(angles[1])}
    if found.task in ("crossings", "fod"):
        number = found.n_fibres()[None, None].to(torch.float32)
        score = ClassificationScore(4)
        score(number, read_nifti(item["npeaks"]).as_tensor()[None])
        line["macro_f1"] = float(score.aggregate())
    return {key: round(value, 4) for key, value in line.items()}


if __name__ == "__main__":
    main()
