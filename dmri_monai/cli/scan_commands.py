"""Commands that read scans: check, fix, labels, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import dmri_monai
from dmri_monai.cli.command import FOUND, B0Option, BvecsOption, command

if TYPE_CHECKING:  # importing torch takes a second, which `--help` does not need
    from torch import Tensor

__all__ = ["check", "fix", "labels", "report"]


@command()
def check(
    scan: Annotated[Path, typer.Argument(help="DWI file (.nii, .nii.gz) with its sidecars.")],
    bvecs: BvecsOption = "auto",
    b0_threshold: B0Option = 50.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    sphere: Annotated[Path | None, typer.Option(help="Write the gradient table as a PNG picture.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report of the scan.")] = None,
) -> None:
    """Check a scan: image, b-values against the signal, dropped slices, b-vectors.

    Exit code 0: nothing looks wrong; 1: something does; 2: the scan cannot be read.
    """
    from dmri_monai.check import check_scan

    result = check_scan(scan, bvecs=bvecs, b0_threshold=b0_threshold)
    typer.echo(
        json.dumps(result.to_dict(), indent=2, allow_nan=False) if as_json else "\n".join(result.lines())
    )
    if sphere or report:
        from dmri_monai.report import Case, write_report, write_sphere
        from dmri_monai.scan import Scan

        read = Scan.read(scan, bvecs=bvecs, b0_threshold=b0_threshold)
        if sphere:
            write_sphere(sphere, read.table)
        if report:
            findings = [{"finding": "nothing looks wrong", "code": ""}] if result.ok else []
            findings += [{"finding": f.message, "code": f.code} for f in result.findings]
            write_report(
                report,
                [Case(scan.name, read.image, read.table)],
                title=f"Check of {scan.name}",
                tables={"Check": findings},
            )
    if not result.ok:
        raise typer.Exit(FOUND)


@command()
def fix(
    scan: Annotated[Path, typer.Argument(help="DWI file (.nii, .nii.gz) with its sidecars.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the mended scan to.")],
    bvecs: BvecsOption = "auto",
    b0_threshold: B0Option = 50.0,
) -> None:
    """Mend what a check is sure of: wrong axes of the b-vectors, trace, ADC and empty volumes, NaN outside of a mask.

    Voxels that are NaN or infinite in every volume become 0.
    Writes <name>_dwi.nii.gz, .bval, .bvec and .json, which says what was done; nothing is overwritten.
    Exit code 0: mended, or nothing to mend (then nothing is written); 2: not sure enough, nothing is written.
    """
    from dmri_monai.check import fix_scan

    mended = fix_scan(scan, out, bvecs=bvecs, b0_threshold=b0_threshold)
    for change in mended.changes:
        typer.echo(change, err=True)
    if not mended.files:
        typer.echo("nothing to mend: nothing was written", err=True)
    for path in mended.files:
        typer.echo(path)


@command()
def labels(
    scans: Annotated[list[Path], typer.Argument(help="DWI files (.nii, .nii.gz) with their sidecars.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the derivatives to write.")],
    mask: Annotated[Path | None, typer.Option(help="Brain mask, of a single scan.")] = None,
    method: Annotated[
        Literal["csd", "msmt"], typer.Option(help="msmt: all shells, with grey matter and fluid.")
    ] = "csd",
    bvecs: BvecsOption = "auto",
    b0_threshold: B0Option = 50.0,
) -> None:
    """Compute training labels from scans: number and directions of fibre peaks, FA."""
    if mask and len(scans) > 1:
        raise ValueError(f"--mask belongs to a single scan, got {len(scans)} scans")
    from tqdm import tqdm

    from dmri_monai.reference import write_labels

    for scan in tqdm(scans, desc="labels", unit="scan", disable=len(scans) == 1):
        written = write_labels(
            scan, out, mask_path=mask, method=method, bvecs=bvecs, b0_threshold=b0_threshold
        )
        for path in written.values():
            typer.echo(path)


@command()
def report(
    outputs: Annotated[Path | None, typer.Argument(help="Folder with predicted *_<suffix>.nii.gz.")] = None,
    data: Annotated[Path | None, typer.Option(help="BIDS data set with scans and ground truth.")] = None,
    image: Annotated[Path | None, typer.Option(help="One DWI file, instead of a folder.")] = None,
    prediction: Annotated[Path | None, typer.Option(help="Predicted labels or peaks of --image.")] = None,
    truth: Annotated[Path | None, typer.Option(help="True labels or peaks of --image.")] = None,
    names: Annotated[Path | None, typer.Option(help="Class names: .tsv with index and name.")] = None,
    suffix: Annotated[
        str,
        typer.Option(help="Which outputs: dseg, lesion, npeaks, peaks, fod, fodpeaks, fodnpeaks, probseg."),
    ] = "dseg",
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Diffusion MRI report",
    neurological: Annotated[bool, typer.Option(help="Show the patient's left on the left.")] = False,
    bvecs: BvecsOption = "auto",
    b0_threshold: B0Option = 50.0,
) -> None:
    """Write a self-contained HTML report of predicted labels or fibre peaks.

    Either a folder of outputs with --data, or one scan with --image and, if wanted, --prediction and --truth.
    """
    if (outputs is None) == (image is None):
        raise ValueError("give either a folder of outputs with --data, or --image")
    if outputs is not None and data is None:
        raise ValueError("a folder of outputs needs --data, the BIDS data set with the scans")
    from dmri_monai.io.nifti import nifti_stem
    from dmri_monai.report import case_from_files, cases_from_folder, read_class_names, write_report

    reader: dict[str, Any] = {"bvecs": bvecs, "b0_threshold": b0_threshold}
    if image is not None:
        class_names = read_class_names(names) if names else {}
        shown = _shown("" if prediction is None else nifti_stem(prediction).split("_")[-1])
        told: dict[str, Any] = {"class_names": class_names, "reader": reader, "shown": shown}
        cases = [case_from_files(image, prediction, truth, **told)]
    elif outputs is not None and data is not None:
        cases = cases_from_folder(outputs, data, suffix=suffix, reader=reader, shown=_shown(suffix))
    provenance = {"dmri_monai": dmri_monai.__version__} | {p: version(p) for p in ("torch", "monai")}
    side: Literal["neurological", "radiological"] = "neurological" if neurological else "radiological"
    typer.echo(write_report(out, cases, title=title, provenance=provenance, convention=side))


def _shown(suffix: str) -> Callable[[Tensor], Tensor] | None:
    """What makes labels or peaks of the maps whose names end in `suffix`: a density has peaks, fractions a tissue."""
    from dmri_monai.tasks.registry import TASKS

    return next((task.output.shown_label for task in TASKS.values() if task.label == suffix), None)
