"""Put trained models into the bundle: weights, description, and what they were trained on, for `dmri_monai.predict`.

Run: python bundle/models/release.py tissue=runs/tissue/model.pt --data DATA
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from dmri_monai.check import ScanCheck, check_scan
from dmri_monai.inference.architectures import build_network
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
        spec = specs[name].replace(trained_on=trained_on(checks, specs[name]), scans=hashes)
        save_model(load_weights(build_network(spec), checkpoint, spec), FOLDER / f"{name}.pt", spec)


def trained_on(checks: Sequence[ScanCheck], spec: ModelSpec) -> dict[str, tuple[float, float]]:
    """Lowest and highest number of directions, b-value of a shell, voxel size and SNR of the scans.

    A model trained with thinned tables has seen the fewest directions of `subsample_directions`.
    """
    directions = [n for n in (used_directions(check, spec) for check in checks) if n]
    fewest = spec.subsample_directions or (min(directions),)
    snr = [check.snr for check in checks if check.snr is not None]
    voxels = [size for check in checks for size in check.spacing_mm]
    bvals = [b for check in checks for b, _ in check.shells] if spec.takes == "shell-set" else []
    ranges = {"directions": [*directions, *fewest[:1]], "bval": bvals, "voxel_mm": voxels, "snr": snr}
    return {name: (round(min(v), 2), round(max(v), 2)) for name, v in ranges.items() if v}


def tables(data: Path) -> dict[str, str]:
    """Hash of the gradient table of every scan in `data`, to show that another data set shares none."""
    scans = [Path(item["image"]) for item in bids.data_list(data)]
    return {scan.name: read_dwi(scan)[1].sha256 for scan in scans}


def used_directions(check: ScanCheck, spec: ModelSpec) -> int:
    """Directions in shells of the model."""
    if spec.takes == "shell-set":
        return sum(n for _, n in check.shells)
    near = spec.shell_tolerance
    return sum(n for b, n in check.shells if any(abs(b - s) <= near * s for s in spec.shells))


if __name__ == "__main__":
    main()
