"""Put a trained model into the bundle: weights, settings, and what it was trained on, for `dmri_monai.predict`.

Run: python bundle/models/release.py runs/tissue/model.pt --data DATA --name tissue
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dmri_monai import bids
from dmri_monai.check import ScanCheck, check_scan
from dmri_monai.io import read_dwi
from dmri_monai.io.writing import replacing
from dmri_monai.prediction import settings_of

FOLDER = Path(__file__).parent
LARGEST = 5 * 2**20  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="BIDS folder of the training scans")
    parser.add_argument("--name", required=True, help="tissue, pretrained, ...")
    options = parser.parse_args()
    settings = settings_of(options.checkpoint)
    if (size := options.checkpoint.stat().st_size) > LARGEST:
        raise SystemExit(f"{options.checkpoint} has {size} bytes, at most {LARGEST} are released")
    settings["trained_on"] = trained_on(options.data, settings)
    settings["scans"] = tables(options.data)
    settings["sha256"] = hashlib.sha256(options.checkpoint.read_bytes()).hexdigest()
    with replacing(FOLDER / f"{options.name}.pt", FOLDER / f"{options.name}.json") as (weights, record):
        shutil.copyfile(options.checkpoint, weights)
        record.write_text(json.dumps(settings, indent=4) + "\n")


def trained_on(data: Path, settings: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Lowest and highest number of directions, voxel size and SNR of the scans in `data`.

    A model trained with thinned tables has seen the fewest directions of `subsample_directions`.
    """
    checks = [check_scan(item["image"]) for item in tqdm(bids.data_list(data), desc="scans")]
    directions = [n for n in (used_directions(check, settings) for check in checks) if n]
    fewest = settings.get("subsample_directions") or [min(directions)]
    snr = [check.snr for check in checks if check.snr is not None]
    voxels = [size for check in checks for size in check.spacing_mm]
    ranges = {"directions": [*directions, *fewest[:1]], "voxel_mm": voxels, "snr": snr}
    return {name: (round(min(v), 2), round(max(v), 2)) for name, v in ranges.items()}


def tables(data: Path) -> dict[str, str]:
    """Hash of the gradient table of every scan in `data`, to show that another data set shares none."""
    scans = [Path(item["image"]) for item in bids.data_list(data)]
    return {scan.name: read_dwi(scan)[1].sha256 for scan in scans}


def used_directions(check: ScanCheck, settings: dict[str, Any]) -> int:
    """Directions in shells of the model."""
    near = settings["tolerance"]
    return sum(n for b, n in check.shells if any(abs(b - s) <= near * s for s in settings["shells"]))


if __name__ == "__main__":
    main()
