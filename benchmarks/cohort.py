"""Peak memory of a training on a cohort larger than memory, with its cache on disk, as a JSON line.

50 subjects of 96 x 96 x 60 voxels and 65 volumes: one MNI152 phantom, and links to it under the names of the
others, each of which is cached for itself.  A tiny network learns for two epochs; the first one fills the cache.

peak_gib: resident memory of the training process, mapped pages of the cache included, as the kernel recorded it.
with_workers_gib: proportional memory (shared pages divided by their users) of it and its workers, sampled.
in_memory_gib: what `cache_rate=1` would hold, the size of all entries.  item_s: one training item, crop and
harmonics, from the cache and from the scan; medians of interleaved runs.  The cache needs as much disk as that.

Run: python benchmarks/cohort.py [--subjects 50] [--workers 0] [--scratch FOLDER]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
from monai.bundle import ConfigWorkflow

from dmri_monai.phantom import shell_table, write_dataset

TARGET_GIB = 3.0
BUNDLE = Path(__file__).resolve().parents[1] / "bundle"
SCAN, LABEL = "sub-01/dwi/sub-01_dwi", "derivatives/ground-truth/sub-01/dwi/sub-01_dseg"
FILES = (*(f"{SCAN}.{ending}" for ending in ("nii.gz", "bval", "bvec", "json")), f"{LABEL}.nii.gz")
SETTINGS: dict[str, Any] = {
    "architecture": "plain",
    "network_options": {"filters": 4},
    "device": "cpu",
    "split": {"train": 0.96, "val": 0.04},
    "max_epochs": 2,
    "mlflow": False,
}


def write_cohort(folder: Path, subjects: int) -> None:
    """A BIDS folder of one phantom subject, and links to its files under the other names."""
    table = shell_table(np.random.default_rng(0), {1000.0: 64}, n_b0=1)
    write_dataset(folder, subjects=1, anatomy="mni152", scheme=table, progress=False)
    for i in range(2, subjects + 1):
        for name in FILES:
            link = folder / name.replace("sub-01", f"sub-{i:02d}")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((folder / name).resolve())


def prepare(scratch: Path, workers: int = 0, **more: Any) -> ConfigWorkflow:
    workflow = ConfigWorkflow(
        config_file=str(BUNDLE / "configs" / "train.json"),
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(BUNDLE),
        dataset_dir=str(scratch / "data"),
        output_dir=str(scratch / "training"),
        num_workers=workers,
        **SETTINGS,
        **more,
    )
    workflow.initialize()
    return workflow


def train(scratch: Path, workers: int) -> None:
    """In a process of its own: prints its peak resident memory in KiB; `getrusage` would begin with its parent's."""
    prepare(scratch, workers, cache_dir=str(scratch / "cache")).run()
    print(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))[1])


def sampled_bytes(process: psutil.Popen) -> int:
    """Peak of the proportional memory of `process` and its children until it ends, ten samples a second."""
    peak = 0
    while process.poll() is None:
        with suppress(psutil.Error):  # one of them has just ended
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(one.memory_full_info().pss for one in family))
        time.sleep(0.1)
    return peak


def item_seconds(scratch: Path, repeats: int) -> dict[str, float]:
    """Median time of one training item, from the filled cache and from the scan."""
    ways: dict[str, dict[str, Any]] = {"cache": {"cache_dir": str(scratch / "cache")}, "scan": {}}
    datasets = {
        name: prepare(scratch, **way).parser.get_parsed_content("train#dataset") for name, way in ways.items()
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(repeats):
        for name, dataset in datasets.items():
            times[name].append(seconds(lambda i=i, dataset=dataset: dataset[(3, i)]))
    return {name: round(median(found), 3) for name, found in times.items()}


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure(scratch: Path, subjects: int, workers: int, repeats: int) -> dict[str, Any]:
    write_cohort(scratch / "data", subjects)
    command = [sys.executable, "-W", "ignore", __file__, "--train", str(scratch), "--workers", str(workers)]
    start = time.perf_counter()
    with psutil.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        sampled = sampled_bytes(process)
        printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"the training ended with code {process.returncode}")
    taken = time.perf_counter() - start
    entries = [path.stat().st_size for path in (scratch / "cache").iterdir()]
    return {
        "subjects": subjects,
        "workers": workers,
        "peak_gib": round(int(printed.split()[-1]) / 2**20, 2),
        "with_workers_gib": round(sampled / 2**30, 2),
        "target_gib": TARGET_GIB,
        "in_memory_gib": round(sum(entries) / 2**30, 2),
        "entries": len(entries),
        "training_s": round(taken, 1),
        "item_s": item_seconds(scratch, min(repeats, subjects // 2)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subjects", type=int, default=50)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--scratch", type=Path, help="Where to make a folder for it all; by default that of the system."
    )
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train, options.workers)
        return
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="cohort-") as folder:
        print(
            json.dumps(measure(Path(folder), options.subjects, options.workers, options.repeats)), flush=True
        )


if __name__ == "__main__":
    main()
