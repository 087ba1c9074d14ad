"""Fine-tuning on two labelled heads from the released pretrained weights, and from scratch with as many steps.

Prints one JSON line per seed (mean tissue Dice of the held-out heads, both arms) and one with the mean gain. The seed
draws the split, the initial weights and the crops. Heads and gradient tables are others than those of the pretraining;
both are listed by the hashes of their tables. Config: `release.json` and `few_labels.json`, as in
`make demo WEIGHTS=released`.

Run: python benchmarks/few_labels.py DATA [--out runs/few] [--seeds 3]; DATA, where it is not there, is made (a minute).
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from dmri_monai.io import bids, read_dwi
from dmri_monai.phantom import write_dataset

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundle"
PRETRAINED = BUNDLE / "models" / "pretrained.pt"
OVERLAYS = [str(ROOT / "configs" / f"{name}.json") for name in ("release", "few_labels")]
TARGET = 0.03  # gain in mean Dice


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/few"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # MONAI's go to stdout
    if not options.data.exists():
        write_dataset(
            options.data, subjects=6, seed=900, anatomy="mni152", scheme="clinical-32", shape=(72, 88, 72),
            snr=(15.0, 20.0),
        )  # fmt: skip
    print(json.dumps(_tables(options.data)), flush=True)
    lines = [_line(seed, options) for seed in range(options.seeds)]
    gains = [line["pretrained"] - line["scratch"] for line in lines]
    summary = {"gain": statistics.mean(gains), "target": TARGET, "seeds": len(gains)}
    if len(gains) > 1:
        summary["gain_sd"] = statistics.stdev(gains)
    print(json.dumps({k: round(v, 4) for k, v in summary.items()}))


def _tables(data: Path) -> dict[str, Any]:
    """Hashes of both sets; SystemExit where they share one."""
    pretraining = json.loads(PRETRAINED.with_suffix(".json").read_text(encoding="utf-8"))["scans"]
    ours = {Path(item["image"]).name: read_dwi(item["image"])[1].sha256 for item in bids.data_list(data)}
    if shared := set(ours.values()) & set(pretraining.values()):
        raise SystemExit(f"{len(shared)} gradient tables of {data} were used in pretraining")
    return {"tables": ours, "pretraining_tables": pretraining}


def _line(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    scores = {
        arm: round(_score(weights, seed, options.out / str(seed) / arm, options), 4)
        for arm, weights in (("pretrained", str(PRETRAINED)), ("scratch", None))
    }
    print(json.dumps({"seed": seed, **scores}), flush=True)
    return scores


def _score(pretrained: str | None, seed: int, out: Path, options: argparse.Namespace) -> float:
    """Mean Dice of WM, GM and CSF over the test heads after training."""
    common = {"dataset_dir": str(options.data), "seed": seed, "device": options.device, "mlflow": False}
    _workflow("train", output_dir=str(out), pretrained=pretrained, overwrite=True, **common).run()
    evaluation = _workflow(
        "evaluate", output_dir=str(out), checkpoint=str(out / "model.pt"), subsample_directions=None, **common
    )
    evaluator = evaluation.parser.get_parsed_content("evaluator")
    evaluator.run()
    return float(evaluator.state.metric_details["dice"].nanmean())


def _workflow(config: str, **settings: Any) -> ConfigWorkflow:
    made = ConfigWorkflow(
        config_file=[str(BUNDLE / "configs" / f"{config}.json"), *OVERLAYS],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train" if config == "train" else "infer",
        bundle_root=str(BUNDLE),
        **settings,
    )
    made.initialize()
    return made


if __name__ == "__main__":
    main()
