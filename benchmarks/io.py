"""Loading a scan of 96 x 96 x 60 voxels and 65 volumes, and fitting its harmonics, as JSON lines.

load_ratio: time of `read_dwi` over nibabel's float32 load of the same .nii.gz, medians of interleaved runs.
peak_memory_ratio: growth of peak memory while loading over nibabel's own, each in a fresh process.
harmonics_s: one shell of 64 directions to l_max 4.

Run: python benchmarks/io.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import nibabel
import numpy as np
import torch

from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_dwi
from dmri_monai.io.fsl import format_bvals, format_bvecs

SHAPE = (96, 96, 60)
N_VOLUMES = 65
AFFINE = np.diag([-2.0, 2.0, 2.0, 1.0])
TARGETS = {"load_ratio": 1.25, "peak_memory_ratio": 1.1, "harmonics_s": 0.3}
LOADERS: dict[str, Callable[[Path], object]] = {
    "nibabel": lambda path: nibabel.load(path).get_fdata(dtype=np.float32),
    "dmri_monai": read_dwi,
}


def write_scan(folder: Path) -> Path:
    """A scan with the compressibility of a real one: smooth anatomy in air, noise of a few per cent, int16."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    inside = (grid**2).sum(0) < 0.8
    anatomy = 600 * inside * (1 + 0.3 * np.sin(9 * grid).prod(0))
    bvals = np.r_[0.0, np.full(N_VOLUMES - 1, 1000.0)]
    bvecs = rng.normal(size=(N_VOLUMES, 3))
    bvecs /= np.linalg.norm(bvecs, axis=1, keepdims=True)
    data = np.empty((*SHAPE, N_VOLUMES), np.int16, order="F")
    for i in range(N_VOLUMES):
        signal = anatomy * np.exp(
            -bvals[i] * 1e-3 * (0.3 + 1.4 * (grid * bvecs[i][:, None, None, None]).sum(0) ** 2)
        )
        data[..., i] = np.hypot(signal + rng.normal(0, 12, SHAPE), rng.normal(0, 12, SHAPE))
    path = folder / "dwi.nii.gz"
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), path)
    table = GradientTable(torch.from_numpy(bvals), torch.from_numpy(bvecs))
    (folder / "dwi.bval").write_text(format_bvals(table.bvals), encoding="utf-8")
    (folder / "dwi.bvec").write_text(format_bvecs(table.to_fsl(torch.from_numpy(AFFINE))), encoding="utf-8")
    return path


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def load_seconds(path: Path, repeats: int) -> dict[str, float]:
    runs: dict[str, list[float]] = {name: [] for name in LOADERS}
    for _ in range(repeats):
        for name, load in LOADERS.items():
            runs[name].append(seconds(lambda load=load: load(path)))
    return {name: median(times) for name, times in runs.items()}


def peak_growth_mib(name: str, path: Path) -> float:
    """Peak of a fresh process while it loads less what it held before, in MiB; modules are imported before."""
    command = [sys.executable, __file__, "--peak-of", name, str(path)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak_growth(name: str, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:  # a first, tiny load: what is set up once is not the scan's
        small = Path(folder) / "dwi.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4, 1), np.int16), AFFINE), small)
        small.with_name("dwi.bval").write_text("0\n", encoding="utf-8")
        small.with_name("dwi.bvec").write_text("0\n0\n0\n", encoding="utf-8")
        LOADERS[name](small)
    before = memory_kib("VmRSS")
    kept = LOADERS[name](path)
    print((memory_kib("VmHWM") - before) / 1024)
    del kept


def memory_kib(name: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process; `ru_maxrss` would begin at the peak of the parent process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in status if line.startswith(f"{name}:")).split()[1])


def harmonics_seconds(path: Path, repeats: int) -> float:
    from dmri_monai.qspace.harmonics import signal_to_harmonics

    image, table = read_dwi(path)
    signal = image.as_tensor().unsqueeze(0)
    bvals, bvecs = table.bvals.float().unsqueeze(0), table.in_voxel_frame(image.affine).float().unsqueeze(0)
    return median(
        seconds(lambda: signal_to_harmonics(signal, bvals, bvecs, shells=[1000.0], l_max=4))
        for _ in range(repeats)
    )


def report(name: str, value: float, **details: float) -> None:
    entry = {"name": name, "value": round(value, 3), "target": TARGETS[name]}
    print(json.dumps(entry | {key: round(v, 3) for key, v in details.items()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak-of", nargs=2, metavar=("LOADER", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print_peak_growth(options.peak_of[0], Path(options.peak_of[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = write_scan(Path(folder))
        times = load_seconds(path, options.repeats)
        report(
            "load_ratio", times["dmri_monai"] / times["nibabel"], **{f"{k}_s": v for k, v in times.items()}
        )
        peaks = {name: peak_growth_mib(name, path) for name in LOADERS}
        ratio = peaks["dmri_monai"] / peaks["nibabel"]
        report("peak_memory_ratio", ratio, **{f"{k}_mib": v for k, v in peaks.items()})
        report("harmonics_s", harmonics_seconds(path, options.repeats))


if __name__ == "__main__":
    main()
