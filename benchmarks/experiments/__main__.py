"""Command line of the experiments."""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")

ROOT = Path(__file__).parents[2]


def main() -> None:
    import torch

    from benchmarks.experiments import generalisation, lesions, page, pretraining, recipes
    from benchmarks.experiments.results import Results
    from benchmarks.experiments.runner import Runner
    from benchmarks.experiments.sizes import SIZES

    experiments = {m.NAME: m for m in (lesions, pretraining, generalisation)}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments", description=__doc__)
    parser.add_argument(
        "what", choices=[*experiments, "all", "page"], help="page: figures and docs/results.md"
    )
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="full",
        help="small: minutes, cpu: hours on one core, full: one GPU machine",
    )
    parser.add_argument("--device", help="cpu or cuda; else cuda where there is one")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "runs" / "experiments", help="heads and pretrained weights"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="JSON lines and figures")
    parser.add_argument("--real", type=Path, help="BIDS folder of real scans, to pretrain on")
    options = parser.parse_args()
    size = SIZES[options.size]
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = [] if options.what == "page" else [options.what]
    found = Results(options.out / size.name / f"{recipes.NAME}.jsonl")
    for name in experiments if options.what == "all" else chosen:
        results = Results(options.out / size.name / f"{name}.jsonl")
        experiments[name].run(Runner(options.work / size.name, results, found, device, options.real), size)
    page.write(options.out)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
