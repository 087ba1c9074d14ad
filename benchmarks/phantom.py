"""Realism and speed of the MNI152 phantom, as JSON lines.

realism: noise-free scans of `--subjects` heads on the default grid, 64 directions at b = 1000 s/mm2, DIPY's tensor;
range over the subjects beside the published range.  crossing_share: white-matter voxels with at least two peaks.
speed: `dmri-monai phantom` writes one subject of 96 x 96 x 60 voxels and 70 volumes in a fresh process: seconds
on the clock, processor seconds and peak memory; on a GPU, one subject without the start of Python.

Run: python benchmarks/phantom.py [--subjects 4] [--only speed|realism] [--markdown]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel

from dmri_monai.gradients import GradientTable
from dmri_monai.phantom import Subject, make_subject, shell_table
from dmri_monai.phantom.mni import tracts

TARGETS = {"speed_s": 30.0, "peak_gib": 6.0, "gpu_s": 2.0}
# What is measured, its unit, the published range, and where it stands.
PUBLISHED: dict[str, tuple[str, float, float, str]] = {
    "intracranial volume": ("l", 1.07, 1.67, "Matsumae 1996, women and men, mean ± 2 SD"),
    "brain / intracranial volume": ("", 0.78, 0.94, "medians 0.78–0.86, Vågberg 2016; 0.89 + 2 SD, Ahmad"),
    "WM mean diffusivity": ("µm²/ms", 0.62, 0.79, "Helenius 2002"),
    "cortical GM mean diffusivity": ("µm²/ms", 0.78, 1.09, "Helenius 2002"),
    "deep GM mean diffusivity": ("µm²/ms", 0.64, 0.83, "Helenius 2002"),
    "CSF mean diffusivity": ("µm²/ms", 2.8, 3.3, "free water at 37 °C: 3.0; Pierpaoli 1996"),
    "corpus callosum FA": ("", 0.55, 0.91, "our own choice: about 0.73 in regions of interest"),
    "WM FA": ("", 0.35, 0.50, "our own choice: it depends on the mask"),
    "GM FA": ("", 0.05, 0.25, "our own choice"),
    "WM voxels with crossings": ("", 0.63, 0.90, "Jeurissen 2013: 0.63 and about 0.9 by two methods"),
}


def table_64() -> GradientTable:
    """64 directions at b = 1000 s/mm2 and one b0."""
    return shell_table(np.random.default_rng(0), {1000.0: 64}, n_b0=1, jitter=0.0)


def dipy_tensor(subject: Subject, where: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """FA and mean diffusivity (um2/ms) of DIPY's weighted least squares in the voxels `where`, noise-free."""
    table = gradient_table(
        subject.table.bvals.numpy(),
        bvecs=subject.table.in_voxel_frame(subject.affine).numpy(),
        b0_threshold=50,
    )
    fit = TensorModel(table).fit(subject.clean[:, where].T.double().numpy())
    return fit.fa, 1000 * fit.md


def realism(subject: Subject) -> dict[str, float]:
    """The quantities of `PUBLISHED` of one subject."""
    voxel_l = float(torch.linalg.det(subject.affine[:3, :3]).abs()) / 1e6
    wm, gm, csf = subject.maps["probseg"]
    healthy, deep = subject.lesion == 0, subject.maps["desc-deepgm_mask"] == 1
    names = [t.name for t in tracts()]
    callosum = [names.index(n) for n in ("callosum_genu", "callosum_body", "callosum_splenium")]
    bundle = subject.maps["bundles"][callosum].amax(0) == 1
    middle = (voxel_x(subject).abs() < 6) & bundle & (subject.maps["isovf"] < 0.1)
    regions = {
        "wm": (wm >= 0.9) & healthy,
        "cortex": (gm >= 0.9) & ~deep,
        "deep": (gm >= 0.9) & deep,
        "csf": csf >= 0.99,
        "callosum": middle & (wm >= 0.8) & healthy & (subject.npeaks == 1),
    }
    fa, md = {}, {}
    for name, where in regions.items():
        fas, mds = dipy_tensor(subject, where)
        fa[name], md[name] = float(fas.mean()), float(mds.mean())
    total = float((wm + gm + csf).sum())
    return {
        "intracranial volume": total * voxel_l,
        "brain / intracranial volume": float((wm + gm).sum()) / total,
        "WM mean diffusivity": md["wm"],
        "cortical GM mean diffusivity": md["cortex"],
        "deep GM mean diffusivity": md["deep"],
        "CSF mean diffusivity": md["csf"],
        "corpus callosum FA": fa["callosum"],
        "WM FA": fa["wm"],
        "GM FA": fa["cortex"],
        "WM voxels with crossings": float(subject.parameters["CrossingShare"]),  # type: ignore[arg-type]
    }


def voxel_x(subject: Subject) -> torch.Tensor:
    """(X, Y, Z) world x in mm, from the midplane of the brain mask."""
    index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in subject.dseg.shape), indexing="ij"), -1)
    x = index.double() @ subject.affine[0, :3] + subject.affine[0, 3]
    return x - x[subject.brain_mask == 1].mean()


def report_realism(n_subjects: int, markdown: bool) -> None:
    scan = {"anatomy": "mni152", "scheme": table_64(), "affine": upright()}
    rows = [realism(make_subject((1, i), **scan)) for i in range(n_subjects)]  # type: ignore[arg-type]
    if markdown:
        print(
            "| quantity | unit | phantom, range over subjects | published | source |\n|---|---|---|---|---|"
        )
    for name, (unit, low, high, source) in PUBLISHED.items():
        values = [row[name] for row in rows]
        inside = low <= min(values) and max(values) <= high
        if markdown:
            print(f"| {name} | {unit} | {min(values):.2f}–{max(values):.2f} | {low:g}–{high:g} | {source} |")
        else:
            found = [round(v, 3) for v in values]
            line = {"name": f"realism: {name}", "values": found, "low": low, "high": high, "inside": inside}
            print(json.dumps(line), flush=True)


def upright() -> torch.Tensor:
    """(4, 4) of the default grid without rotation."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] *= 2.5
    affine[:3, 3] = -2.5 * (torch.tensor([96.0, 96.0, 60.0]) - 1) / 2
    return affine


def report_speed() -> None:
    scheme = ["--shape", "96", "96", "60", "--anatomy", "mni152", "--scheme", "single-64"]
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "dmri_monai.cli",
            "phantom",
            "--out",
            f"{folder}/bids",
            "--subjects",
            "1",
        ]
        start = time.perf_counter()
        subprocess.run([*command, *scheme], check=True, capture_output=True)
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = {
        "name": "speed",
        "seconds": round(seconds, 2),
        "target_s": TARGETS["speed_s"],
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_gib": round(used.ru_maxrss / 2**20, 2),
        "target_gib": TARGETS["peak_gib"],
    }
    print(json.dumps(line), flush=True)
    if torch.cuda.is_available():
        report_gpu()


def report_gpu() -> None:
    def once(seed: int) -> float:
        start = time.perf_counter()
        make_subject(seed, anatomy="mni152", scheme=table_64(), device="cuda")
        torch.cuda.synchronize()
        return time.perf_counter() - start

    times = [once(seed) for seed in range(4)][1:]
    print(json.dumps({"name": "gpu", "seconds": round(min(times), 3), "target_s": TARGETS["gpu_s"]}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subjects", type=int, default=4)
    parser.add_argument("--only", choices=["speed", "realism"])
    parser.add_argument("--markdown", action="store_true", help="Print the realism table for the docs.")
    options = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "speed": report_speed,  # first: a child's peak memory counts its parent's at the fork
        "realism": lambda: report_realism(options.subjects, options.markdown),
    }
    for name, part in parts.items():
        if options.only in (None, name):
            part()


if __name__ == "__main__":
    main()
