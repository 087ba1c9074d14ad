"""Mend a scan where a check is sure what is wrong: axes of the b-vectors, volumes that are no measurements."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import dmri_monai
from dmri_monai.check.derived import recognise
from dmri_monai.check.image_state import empty_volumes, listed
from dmri_monai.check.lenient import FileScan, read_files
from dmri_monai.check.measured import Measured
from dmri_monai.check.scan_check import ScanCheck, examine
from dmri_monai.gradients import B0_THRESHOLD, GradientTable
from dmri_monai.io.fsl import format_bvals, format_bvecs
from dmri_monai.io.json_sidecar import read_json
from dmri_monai.io.nifti import nifti_stem
from dmri_monai.io.sidecars import BvecsChoice
from dmri_monai.io.writing import replacing

__all__ = ["Mended", "fix_scan"]

MAX_SURPLUS = 2  # volumes behind those of the table: scanners append a trace and an ADC map
# findings that leave open which volume is which; nothing is written then
UNSURE = ("volume-order", "volume-level", "b0-not-brightest", "levels-not-decaying", "derived-volume")


@dataclass(frozen=True)
class Mended:
    """`changes`: what was done, a sentence each; `files` written, none where there was nothing to mend.

    check: of the scan as it is now.
    """

    changes: tuple[str, ...]
    files: tuple[Path, ...]
    check: ScanCheck


def fix_scan(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    bvecs: BvecsChoice = "auto",
    b0_threshold: float = B0_THRESHOLD,
) -> Mended:
    """Write the scan at `path` to folder `out` with what a check is sure of mended, whole or not at all.

    Left out: entries with b > 0 and no direction, one or two last volumes without an entry if recognised as trace or
    ADC, volumes labelled b0 that are not, empty volumes.  Mended: flipped or permuted b-vectors, b-vectors given in
    scanner axes, voxels that are NaN or infinite in every volume kept (then 0).  Every other number stays as stored.
    Files: `<name>_dwi` .nii.gz, .bval, .bvec (FSL frame) and .json with the sidecar's entries and, under "Mending",
    what was done.
    ValueError where the check is not sure, FileExistsError where a file is there already; else as the reader.
    """
    files = read_files(path, bvecs=bvecs, b0_threshold=b0_threshold)
    kept, changes = _without_derived(files)
    # before a b0 with gaps of its own is taken for a trace or ADC
    _unmeasured(files, kept, [i for i in kept if files.bvals[i] > b0_threshold])
    scan = Measured(files.signal[kept], files.table(kept), files.affine, files.slice_world)
    result = examine(scan)
    if "derived-volume" in result.codes:
        kept, scan, more = _without_mislabelled(files, kept, scan, result)
        changes += more
        result = examine(scan)
    if count := _unmeasured(files, kept, kept):
        changes.append(f"{count} voxels set to 0: not finite in any volume")
    _refuse_unsure(result, files.path)
    if result.coherence is not None and result.coherence.verdict == "wrong":
        changes.append(f"b-vectors mended: they looked {result.coherence.description}")
        table = _turned(scan.table, torch.tensor(result.coherence.change), files.affine)
        scan = replace(scan, table=table)
        result = examine(scan)
        if result.coherence is None or result.coherence.verdict != "consistent":
            raise ValueError(f"the b-vectors do not fit after mending either: {files.path}")
    verdict = "not judged" if result.coherence is None else result.coherence.verdict
    if not changes and verdict != "consistent":
        raise ValueError(f"not sure of the b-vectors ({verdict}): nothing was written for {files.path}")
    written = _write(files, kept, scan.table, Path(out), changes, verdict) if changes else ()
    return Mended(tuple(changes), written, result)


def _without_derived(files: FileScan) -> tuple[list[int], list[str]]:
    """Volumes to keep by table and emptiness alone, and why the others go."""
    volumes, entries = len(files.signal), len(files.bvals)
    reasons = {
        i: f"no direction at b = {float(files.bvals[i]):g}, as of a trace or ADC volume"
        for i in files.pointless
    }
    empty = empty_volumes(files.signal)
    reasons |= dict.fromkeys((i for i in empty if i < entries), "no signal")
    kept = [i for i in range(min(entries, volumes)) if i not in reasons]
    if volumes != entries:
        reasons |= _surplus(files, kept)
    if not any(files.bvals[i] > files.b0_threshold for i in kept):
        raise ValueError(f"no volume with a direction and signal would be left of {volumes} in {files.path}")
    return kept, [f"volume {i} left out: {reason}" for i, reason in sorted(reasons.items())]


def _unmeasured(files: FileScan, kept: list[int], among: list[int]) -> int:
    """How many voxels are missing in all of the volumes `among`; ValueError where one of `kept` misses others."""
    nowhere = files.missing[among].all(dim=0)
    own = [i for i in kept if bool((files.missing[i] & ~nowhere).any())]
    if own:
        count = int((files.missing[own] & ~nowhere).sum())
        raise ValueError(
            f"not sure how to mend this: {count} values are not finite, in {listed(own)}, and finite in others: "
            f"{files.path}"
        )
    return int(nowhere.sum())


def _surplus(files: FileScan, kept: list[int]) -> dict[int, str]:
    """Volumes behind those of the table, and what each was recognised as."""
    volumes, entries = len(files.signal), len(files.bvals)
    problem = f"{entries} entries of the table for {volumes} volumes"
    if not entries < volumes <= entries + MAX_SURPLUS:
        raise ValueError(f"{problem}: not sure which belong together in {files.path}")
    b0 = [i for i in kept if files.bvals[i] <= files.b0_threshold]
    weighted = [i for i in kept if i not in b0]
    reasons = {}
    for i in range(entries, volumes):
        kind = (
            recognise(files.signal[i], files.signal[b0], files.signal[weighted]) if b0 and weighted else None
        )
        if kind is None:
            raise ValueError(
                f"{problem}, and volume {i} is no trace or ADC: not sure which belong together in {files.path}"
            )
        reasons[i] = f"no entry in the table, recognised as the {kind} volume"
    return reasons


def _without_mislabelled(
    files: FileScan, kept: list[int], scan: Measured, result: ScanCheck
) -> tuple[list[int], Measured, list[str]]:
    """Without the volumes that the table calls b0 and the signal does not."""
    bad = {i for f in result.findings if f.code == "derived-volume" for i in f.volumes}
    rows = [i for i in range(len(kept)) if i not in bad]
    rest = replace(scan, signal=scan.signal[rows], table=scan.table.select(torch.tensor(rows)))
    why = "labelled b0 without its signal, as a trace or ADC volume"
    return [kept[i] for i in rows], rest, [f"volume {kept[i]} left out: {why}" for i in sorted(bad)]


def _refuse_unsure(result: ScanCheck, path: Path) -> None:
    for finding in result.findings:
        if finding.severity == "error" or finding.code in (*UNSURE, "empty-volume"):
            raise ValueError(f"not sure how to mend this: {finding.message} in {path}")


def _turned(table: GradientTable, change: torch.Tensor, affine: torch.Tensor) -> GradientTable:
    """`table` after `change` (3, 3) of the columns of its FSL form."""
    return GradientTable.from_fsl(
        table.bvals, table.to_fsl(affine) @ change.double().T, affine, table.b0_threshold
    )


def _write(
    files: FileScan, kept: list[int], table: GradientTable, out: Path, changes: list[str], verdict: str
) -> tuple[Path, ...]:
    name = nifti_stem(files.path).removesuffix("_dwi")
    targets = tuple(out / f"{name}_dwi{end}" for end in (".bval", ".bvec", ".json", ".nii.gz"))
    for target in targets:
        if target.exists() or target.is_symlink():
            raise FileExistsError(f"{target} is there already: nothing was written")
    sidecar = _sidecar(files, table, changes, verdict)
    with replacing(*targets) as (bval, bvec, aside, image):
        bval.write_text(format_bvals(table.bvals), encoding="ascii")
        bvec.write_text(format_bvecs(table.to_fsl(files.affine)), encoding="ascii")
        aside.write_text(json.dumps(sidecar, indent=4) + "\n", encoding="utf-8")
        files.stored(kept).to_filename(image)
    return targets


def _sidecar(files: FileScan, table: GradientTable, changes: list[str], verdict: str) -> Mapping[str, Any]:
    known: dict[str, Any] = {}
    for path in files.json:
        known |= read_json(path)
    mending = {
        "Changes": changes,
        "BVectors": verdict,
        "Source": files.path.name,
        "SourceTable": [files.entries.bval_file.name, files.entries.bvec_file.name],
        "TableSHA256": table.sha256,
        "Version": dmri_monai.__version__,
    }
    return known | {"Mending": mending}
