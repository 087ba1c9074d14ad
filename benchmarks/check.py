"""`dmri-monai check` on faulty gradient tables of real scans, as JSON lines; every table of the data set is right.

Tables: the 24 axis changes (flips and permutations up to sign, the right table among them); for oblique scans the
vectors in scanner axes, RAS and LPS, given as if they lay along the image's axes; and right vectors turned by 20 and
40 degrees about each axis, as after a rotation of the image that left them behind, which the check cannot name.
Shapes: native, and every two slices averaged across each axis in turn.  decided: share of faulty tables on which the
check takes a side; named: share of these that it names rightly; accused: right tables called wrong.
clean_dropouts, dropout_*: slices called dropped in the scans as they are, and share found of those dropped by
`artifacts.slice_dropout`.
--dwigradcheck: instead, MRtrix's tool on the right table (it tries 48 changes itself), where it is installed.

Run: python benchmarks/check.py ROOT [--dwigradcheck] [--scans N] >> results.jsonl
     python benchmarks/check.py --table results.jsonl prints the figures of the docs
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dmri_monai.artifacts import slice_dropout
from dmri_monai.check.axis_changes import AXIS_CHANGES, canonical_sign, describe, turn_deg
from dmri_monai.check.coherence import DISTINCT_DEG, Coherence, judge_coherence
from dmri_monai.check.quality import dropped_slices
from dmri_monai.check.reading import read_measured
from dmri_monai.gradients import GradientTable, grid_rotation
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.qspace.direction_maps import direction_maps

TURNS_DEG = (20.0, 40.0)
LOSSES = (0.3, 0.5, 0.8)
DROPPED = 20
STREAMLINES = 2000  # dwigradcheck's, of each of its 48 tables
ROW = r"^\s*([\d.]+)\s+(none|\d)\s+\((\d), (\d), (\d)\)"  # of its output: length, flip, order of axes
TITLES = {
    "right": "right",
    "axes": "flipped or permuted",
    "frame": "in scanner axes",
    "turned": "turned by 20 or 40°",
}
LPS = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", nargs="?", type=Path, help="BIDS folder of scans with right tables")
    parser.add_argument("--scans", type=int, help="only the first so many")
    parser.add_argument("--dwigradcheck", action="store_true")
    parser.add_argument("--table", type=Path, help="print the docs' table from the lines of an earlier run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.table:
        print_table([json.loads(line) for line in options.table.read_text(encoding="utf-8").splitlines()])
        return
    if options.root is None:
        parser.error("give the folder of the scans, or --table")
    for path in sorted(options.root.glob("sub-*/**/dwi/*_dwi.nii.gz"))[: options.scans]:
        for line in [rival(path)] if options.dwigradcheck else measure(path):
            print(json.dumps({"scan": path.name.removesuffix("_dwi.nii.gz"), **line}), flush=True)


def measure(path: Path) -> Iterator[dict[str, Any]]:
    """One line for every table of every shape, then one of dropped slices."""
    scan = read_measured(path)
    yield from judged("native", scan.signal, scan.table, scan.affine)
    for axis in range(3):
        yield from judged(f"thick-{'xyz'[axis]}", *thickened(scan.signal, scan.table, scan.affine, axis))
    yield dropouts(scan.signal, scan.table, scan.slice_axis)


def thickened(
    signal: Tensor, table: GradientTable, affine: Tensor, axis: int
) -> tuple[Tensor, GradientTable, Tensor]:
    """Every two slices across `axis` as one."""
    pairs = signal.shape[1 + axis] // 2
    out = signal.narrow(1 + axis, 0, 2 * pairs).unflatten(1 + axis, (pairs, 2)).mean(dim=2 + axis)
    thick = affine.clone()
    thick[:3, 3] += affine[:3, axis] / 2
    thick[:3, axis] *= 2
    return out, table, thick


def judged(shape: str, signal: Tensor, table: GradientTable, affine: Tensor) -> Iterator[dict[str, Any]]:
    """Verdicts on every faulty table.  A tensor turns with its table, so that one fit serves all of them."""
    maps = direction_maps(signal, table, affine, head_mask(mean_b0(signal, table.bvals, table.b0_threshold)))
    assert maps is not None
    rotation = grid_rotation(affine)
    v1 = torch.einsum("ji,jxyz->ixyz", rotation.float(), maps.v1_world)
    signs = torch.diag(torch.tensor([-1.0 if torch.linalg.det(rotation) > 0 else 1.0, 1.0, 1.0]).double())
    offsets = rotation.T @ affine[:3, :3]
    frames = {"RAS": rotation.T @ signs, "LPS": rotation.T @ LPS @ signs}
    for kind, name, fault in faults(signs, frames):
        turned = torch.einsum("ij,jxyz->ixyz", fault.float(), v1)
        start = time.perf_counter()
        result = judge_coherence(turned, maps.fa, offsets, torch.diag(signs), frames)
        seconds = time.perf_counter() - start
        yield {
            "shape": shape,
            "kind": kind,
            "fault": name,
            "verdict": result.verdict,
            "named": result.verdict == "wrong" and mends(result, fault, signs, kind),
            "z": round(result.z, 1),
            "seconds": round(seconds, 2),
        }


def faults(signs: Tensor, frames: dict[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """Kind, name and (3, 3) matrix from right directions to those read, in the voxel frame."""
    for change in AXIS_CHANGES:
        name = describe(change)
        yield ("axes" if name else "right"), name or "right", signs @ change @ signs
    for name, mending in frames.items():
        if min(turn_deg(mending, change) for change in AXIS_CHANGES) >= DISTINCT_DEG:
            yield "frame", name, mending.T
    for axis in range(3):
        for degrees in TURNS_DEG:
            yield "turned", f"{degrees:g} about {'xyz'[axis]}", turn(axis, degrees)


def turn(axis: int, degrees: float) -> Tensor:
    generator = torch.zeros(3, 3, dtype=torch.float64)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    generator[j, i], generator[i, j] = 1.0, -1.0
    return torch.linalg.matrix_exp(generator * torch.deg2rad(torch.tensor(degrees).double()))


def mends(result: Coherence, fault: Tensor, signs: Tensor, kind: str) -> bool:
    """Whether the change that the check proposes undoes the fault."""
    proposed = signs @ torch.tensor(result.change, dtype=torch.float64) @ signs
    return turn_deg(proposed @ canonical_sign(fault), torch.eye(3)) < (
        1.0 if kind in ("axes", "frame") else 5.0
    )


def dropouts(signal: Tensor, table: GradientTable, axis: int) -> dict[str, Any]:
    """Slices called dropped in the scan as it is, and of DROPPED that were dropped the share that is found."""
    mask = head_mask(mean_b0(signal, table.bvals, table.b0_threshold))
    weighted = torch.nonzero(~table.b0_mask).flatten()
    held = torch.nonzero(mask.sum(dim=[a for a in range(3) if a != axis]) >= 100).flatten()[2:-2]
    line: dict[str, Any] = {
        "kind": "slices",
        "clean_dropouts": len(dropped_slices(signal, table, mask, axis)),
    }
    for loss in LOSSES:
        volumes = weighted[torch.randint(len(weighted), (DROPPED,))]
        slices = held[torch.randint(len(held), (DROPPED,))]
        spoilt = slice_dropout(signal, volumes=volumes, slices=slices, loss=loss, axis=axis)
        true = set(zip(volumes.tolist(), slices.tolist(), strict=True))
        found = {(d.volume, d.slice) for d in dropped_slices(spoilt, table, mask, axis)}
        line[f"dropout_{loss:g}"] = round(len(found & true) / len(true), 2)
    return line


def rival(path: Path) -> dict[str, Any]:
    """Whether MRtrix's dwigradcheck leaves the right table as it is."""
    tool = shutil.which("dwigradcheck")
    if tool is None:
        return {"kind": "dwigradcheck", "verdict": "not installed"}
    stem = str(path).removesuffix(".nii.gz")
    command = [tool, str(path), "-fslgrad", f"{stem}.bvec", f"{stem}.bval"]
    command += ["-number", str(STREAMLINES), "-nthreads", "0"]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        command += ["-scratch", scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = round(time.perf_counter() - start, 1)
    rows = re.findall(
        r"^\s*([\d.]+)\s+(none|\d)\s+\((\d), (\d), (\d)\)", done.stdout + done.stderr, re.MULTILINE
    )
    if done.returncode or not rows:
        return {
            "kind": "dwigradcheck",
            "verdict": "failed",
            "message": done.stderr[-200:],
            "seconds": seconds,
        }
    best = max(rows, key=lambda row: float(row[0]))
    right = best[1] == "none" and best[2:] == ("0", "1", "2")
    return {
        "kind": "dwigradcheck",
        "verdict": "right" if right else "wrong",
        "best": list(best),
        "seconds": seconds,
    }


def print_table(lines: list[dict[str, Any]]) -> None:
    """The figures of the docs as Markdown."""
    print("| tables | shape | number | decided | named, where decided | right tables accused |")
    print("|---|---|---|---|---|---|")
    for kind, title in TITLES.items():
        for shape in ("native", "thick"):
            some = [r for r in lines if r["kind"] == kind and r["shape"].startswith(shape)]
            if some:
                print(table_row(title, shape, some))
    slices = [r for r in lines if r["kind"] == "slices"]
    if slices:
        alarms = sum(r["clean_dropouts"] for r in slices)
        shares = ", ".join(
            f"{100 * sum(r[f'dropout_{x:g}'] for r in slices) / len(slices):.0f} % of those that lost {100 * x:.0f} %"
            for x in LOSSES
        )
        print(
            f"\nDropped slices: {alarms} reported in {len(slices)} scans as they are; of simulated ones {shares}."
        )
    rivals = [r for r in lines if r["kind"] == "dwigradcheck" and r["verdict"] in ("right", "wrong")]
    if rivals:
        right = sum(r["verdict"] == "right" for r in rivals)
        print(
            f"\n`dwigradcheck`, {STREAMLINES} streamlines a table: the right table comes first in {right} of "
            f"{len(rivals)} scans, {median([r['seconds'] for r in rivals]):g} s a scan in the median."
        )
    print(
        f"\nOne verdict takes {median([r['seconds'] for r in lines if 'shape' in r]):g} s in the median, one thread."
    )


def table_row(title: str, shape: str, lines: list[dict[str, Any]]) -> str:
    decided = [r for r in lines if r["verdict"] != "inconclusive"]
    right = lines[0]["kind"] == "right"
    named = "" if right else f"{sum(r['named'] for r in decided)} of {len(decided)}"
    accused = str(sum(r["verdict"] == "wrong" for r in lines)) if right else ""
    share = f"{100 * len(decided) / len(lines):.0f} %"
    return f"| {title} | {shape} | {len(lines)} | {share} | {named} | {accused} |"


if __name__ == "__main__":
    sys.exit(main())
