"""Put trained models into the bundle: weights, description, and what they were trained on, for `dmri_monai.predict`.

Run: python bundle/models/release.py tissue=runs/tissue/model.pt --data DATA
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from dmri_monai.check import check_scan
from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.seen_scans import range_seen
from dmri_monai.inference.spec import ModelSpec, spec_path
from dmri_monai.inference.weights import load_weights, save_model
from dmri_monai.io import bids, read_dwi

FOLDER = Path(__file__).parent
LARGEST = 5 * 2**20  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", nargs="+", metavar="NAME=CHECKPOINT", help="tissue=runs/tissue/model.pt ..."
    )
    parser.add_argument("--data", type=Path, required=True, help="BIDS folder of the training scans")
    options = parser.parse_args()
    chosen = [(name, Path(path)) for name, _, path in (model.partition("=") for model in options.models)]
    specs = {name: ModelSpec.load(spec_path(checkpoint)) for name, checkpoint in chosen}
    for name, checkpoint in chosen:
        if (size := checkpoint.stat().st_size) > LARGEST:
            raise SystemExit(f"{name}: {checkpoint} has {size} bytes, at most {LARGEST} are released")
    checks = [check_scan(item["image"]) for item in tqdm(bids.data_list(options.data), desc="scans")]
    hashes = tables(options.data)
    for name, checkpoint in chosen:
        spec = specs[name].replace(
            trained_on=range_seen(checks, specs[name], drops_shells=True), scans=hashes
        )
        save_model(load_weights(build_network(spec), checkpoint, spec), FOLDER / f"{name}.pt", spec)


def tables(data: Path) -> dict[str, str]:
    """Hash of the gradient table of every scan in `data`, to show that another data set shares none."""
    scans = [Path(item["image"]) for item in bids.data_list(data)]
    return {scan.name: read_dwi(scan)[1].sha256 for scan in scans}


if __name__ == "__main__":
    main()
