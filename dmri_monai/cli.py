"""The `dmri-monai` command line.  Commands import what they need, so that `--help` answers at once."""

from __future__ import annotations

import functools
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import dmri_monai
from dmri_monai.signals import end_on_sigterm
from dmri_monai.warning_lines import tell_warning, warning_lines

__all__ = ["app"]

Scheme = Literal["random", "clinical-32", "single-64", "hcp-3shell"]  # those of dmri_monai.phantom
Bvecs = Literal["auto", "fsl", "dipy", "mrtrix", "eddy"]  # those of dmri_monai.io
BvecsOption = Annotated[
    Bvecs,
    typer.Option(
        help="Convention of the b-vectors: fsl (.bvec), dipy (.bvec without FSL's sign of x), mrtrix (.b), "
        "eddy (<scan>.eddy_rotated_bvecs); auto compares what is there."
    ),
]
B0Option = Annotated[float, typer.Option(min=0, help="Volumes with b up to this (s/mm²) are b0.")]
ModelsB0Option = Annotated[
    float | None,
    typer.Option(
        min=0, help="Volumes with b up to this (s/mm²) are b0; if not given, as in the model's training."
    ),
]
UNNEEDED = ("mlflow", "ignite", "matplotlib", "sklearn", "pandas", "skimage", "tensorboard")
FOUND, FAILED = 1, 2  # exit codes: a check found something; the command could not do its work

app = typer.Typer(
    help="Deep learning on diffusion MRI with MONAI.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a user's error into one line on stderr and exit code 2; anything else keeps its traceback.

    SIGTERM ends a command as Ctrl-C does, tidied up.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        end_on_sigterm()
        try:
            command(*args, **kwargs)
        except (ValueError, OSError, MemoryError) as error:
            typer.echo(f"error: {' '.join(str(error).split()) or type(error).__name__}", err=True)
            raise typer.Exit(FAILED) from error

    return wrapped


def _device(name: str | None) -> str | None:
    """`name` of a device that there is; torch itself would end in a traceback."""
    if name not in (None, "cpu"):
        import torch

        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:  # the latter of a torch without CUDA
            raise typer.BadParameter(f"{name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return name


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(dmri_monai.__version__)
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Deep learning on diffusion MRI with MONAI."""
    context.with_resource(warning_lines())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # names of files may hold bytes that are no text


@app.command()
@_one_line_errors
def phantom(
    out: Annotated[Path, typer.Option(help="Folder of the BIDS data set to write.")],
    subjects: Annotated[int, typer.Option(min=1, help="Number of subjects.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same data.")] = 0,
    anatomy: Annotated[
        Literal["procedural", "mni152", "auto"],
        typer.Option(
            help="procedural: a small head; mni152: an adult brain (needs nilearn); "
            "auto: mni152 where nilearn is installed, else procedural."
        ),
    ] = "procedural",
    shape: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Voxels along x y z; else 48 56 48, or 96 96 60 for mni152."),
    ] = None,
    spacing: Annotated[
        tuple[float, float, float] | None, typer.Option(help="Voxel size in mm; else 2.5.")
    ] = None,
    scheme: Annotated[
        Scheme | None, typer.Option(help="Gradient scheme; random, the default, draws one per subject.")
    ] = None,
    snr: Annotated[
        tuple[float, float] | None, typer.Option(help="Range of the SNR of the b0 volumes; else 15 30.")
    ] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="Artifact preset (light, normal, strong, all) or a JSON file.")
    ] = None,
    randomise: Annotated[
        bool, typer.Option(help="Domain randomisation: another protocol for every subject.")
    ] = False,
    device: Annotated[str, typer.Option(callback=_device, help="Where to compute: cpu or cuda.")] = "cpu",
) -> None:
    """Write a brain phantom with ground truth as a BIDS data set."""
    from dmri_monai.phantom import Acquisition, write_dataset

    if anatomy == "auto":
        anatomy = "mni152" if find_spec("nilearn") else "procedural"
        typer.echo(f"anatomy: {anatomy}", err=True)
    path = write_dataset(
        out,
        subjects=subjects,
        seed=seed,
        anatomy=anatomy,
        shape=shape,
        spacing_mm=spacing,
        scheme=scheme,
        snr=snr,
        acquisition=Acquisition(randomise, artifacts) if randomise or artifacts else None,
        device=device,
    )
    typer.echo(f"{subjects} subject{'s' if subjects > 1 else ''} in {path}")


@app.command()
@_one_line_errors
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


@app.command()
@_one_line_errors
def fix(
    scan: Annotated[Path, typer.Argument(help="DWI file (.nii, .nii.gz) with its sidecars.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write the mended scan to.")],
    bvecs: BvecsOption = "auto",
    b0_threshold: B0Option = 50.0,
) -> None:
    """Mend what a check is sure of: wrong axes of the b-vectors, trace, ADC and empty volumes.

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


@app.command()
@_one_line_errors
def report(
    outputs: Annotated[Path | None, typer.Argument(help="Folder with predicted *_<suffix>.nii.gz.")] = None,
    data: Annotated[Path | None, typer.Option(help="BIDS data set with scans and ground truth.")] = None,
    image: Annotated[Path | None, typer.Option(help="One DWI file, instead of a folder.")] = None,
    prediction: Annotated[Path | None, typer.Option(help="Predicted labels or peaks of --image.")] = None,
    truth: Annotated[Path | None, typer.Option(help="True labels or peaks of --image.")] = None,
    names: Annotated[Path | None, typer.Option(help="Class names: .tsv with index and name.")] = None,
    suffix: Annotated[str, typer.Option(help="Which outputs: dseg, lesion, npeaks, peaks.")] = "dseg",
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
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
    from dmri_monai.report import case_from_files, cases_from_folder, read_class_names, write_report

    reader: dict[str, Any] = {"bvecs": bvecs, "b0_threshold": b0_threshold}
    if image is not None:
        class_names = read_class_names(names) if names else {}
        cases = [case_from_files(image, prediction, truth, class_names=class_names, reader=reader)]
    elif outputs is not None and data is not None:
        cases = cases_from_folder(outputs, data, suffix=suffix, reader=reader)
    provenance = {"dmri_monai": dmri_monai.__version__} | {p: version(p) for p in ("torch", "monai")}
    side: Literal["neurological", "radiological"] = "neurological" if neurological else "radiological"
    typer.echo(write_report(out, cases, title=title, provenance=provenance, convention=side))


@app.command()
@_one_line_errors
def runs(
    store: Annotated[
        str | None, typer.Argument(help="sqlite:///…, a .db file, its folder, or a server's URI.")
    ] = None,
    mark_dead: Annotated[
        str | None,
        typer.Option(metavar="RUN_ID", help="Set a run left RUNNING by a killed process to FAILED."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs as JSON.")] = False,
) -> None:
    """List the MLflow runs of a store, newest first."""
    from dataclasses import asdict

    from dmri_monai.integrations.mlflow_runs import list_runs, runs_table
    from dmri_monai.integrations.mlflow_runs import mark_dead as settle

    if mark_dead:
        typer.echo(f"{settle(mark_dead, store)} is now FAILED")
        return
    found = list_runs(store)
    typer.echo(json.dumps([asdict(r) for r in found], indent=2) if as_json else runs_table(found))


@app.command()
@_one_line_errors
def artifacts(
    show: Annotated[
        bool, typer.Option("--list", help="List the presets, their artifacts and ranges.")
    ] = False,
    gallery: Annotated[
        Path | None, typer.Option(help="PNG to write: one row per artifact, clean, corrupted, difference.")
    ] = None,
) -> None:
    """Show the simulated artifacts."""
    if not show and gallery is None:
        raise ValueError("give --list or --gallery OUT.png")
    if show:
        from dmri_monai.artifacts.engine.presets import describe_presets

        typer.echo(describe_presets())
    if gallery is not None:
        from dmri_monai.phantom.gallery import gallery as write_gallery

        typer.echo(write_gallery(gallery))


@app.command()
@_one_line_errors
def labels(
    scans: Annotated[list[Path], typer.Argument(help="DWI files (.nii, .nii.gz) with their sidecars.")],
    out: Annotated[Path, typer.Option(help="Folder of the derivatives to write.")],
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


@app.command()
@_one_line_errors
def predict(
    scan: Annotated[
        Path,
        typer.Argument(help="DWI file (.nii, .nii.gz) with its sidecars, or a folder of scans (BIDS, HCP)."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write to; of a study: BIDS derivatives.")
    ],
    task: Annotated[str, typer.Option(help="Which released model, or all of them.")] = "tissue",
    checkpoint: Annotated[
        Path | None, typer.Option(help="A model of your own, with its model.json beside it.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(callback=_device, help="cpu or cuda; if not given, cuda where there is one.")
    ] = None,
    ensemble: Annotated[
        Literal["rotations", "flips"] | None,
        typer.Option(help="Average over turned copies of the scan, with an uncertainty."),
    ] = None,
    window: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Voxels along x y z of sliding windows, where the memory is short."),
    ] = None,
    report: Annotated[
        bool | None,
        typer.Option(help="HTML page with pictures; if not given, for the subjects of a study alone."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that no prediction wrote.")
    ] = False,
    bvecs: BvecsOption = "auto",
    b0_threshold: ModelsB0Option = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", help="Of a study: only scans with this BIDS entity, such as dir=AP; repeatable."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Of a study: pass over scans whose prediction is there.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Of a study: processes on this machine.")] = 1,
) -> None:
    """Run a trained model on one scan, or on every scan of a study.

    One scan: a map on its grid with a JSON sidecar.  A study: BIDS derivatives, a page per subject and index.html; a
    scan that fails is reported and the others are done (exit code 1); under torchrun or in a SLURM array each process
    takes its share.  Scans are checked first; what looks wrong is printed, and stands in sidecar and report.
    """
    reader: dict[str, Any] = {"bvecs": bvecs}
    reader |= {} if b0_threshold is None else {"b0_threshold": b0_threshold}
    models = _models(task, checkpoint)
    if scan.is_dir():
        _predict_study(
            scan,
            out,
            entities=filters or [],
            models=models,
            device=device,
            ensemble=ensemble,
            window=window,
            workers=workers,
            resume=resume,
            overwrite=overwrite,
            reports=report is not False,
            reader=reader,
        )
        return
    with _without_what_nothing_needs():
        from dmri_monai.prediction import load_model
    from dmri_monai.scan import Scan

    loaded = [load_model(name, device) for name in models]
    _ = [model.task for model in loaded]  # a pretrained network is refused before the scan is read
    read = Scan.read(scan, **{"b0_threshold": loaded[0].spec.b0_threshold, **reader})
    for model in loaded:
        found = model.predict(read, ensemble=ensemble, window=window)
        found = found.write(out, report=bool(report), overwrite=overwrite)
        for warning in found.warnings if model is loaded[0] else ():
            tell_warning(warning)
        for path in found.files.values():
            typer.echo(path)


def _models(task: str, checkpoint: Path | None) -> list[str | Path]:
    """Names of released models, or the path of one's own; ValueError for a task that has none."""
    if checkpoint is not None:
        return [checkpoint]
    from dmri_monai.inference.released import released_tasks

    known = released_tasks()
    if task != "all" and task not in known:
        raise ValueError(
            f"no released model for task {task!r}, only for {', '.join(known)}; give a --checkpoint"
        )
    return list(known) if task == "all" else [task]


def _predict_study(
    source: Path, out: Path, *, entities: list[str], reader: dict[str, Any], **options: Any
) -> None:
    """`predict` of a folder."""
    from dmri_monai.inference.released import find_weights
    from dmri_monai.inference.spec import ModelSpec, spec_path
    from dmri_monai.inference.study import StudyOptions, predict_study
    from dmri_monai.io import scans

    if "b0_threshold" not in reader:
        spec = ModelSpec.load(spec_path(find_weights(options["models"][0])))
        reader = {**reader, "b0_threshold": spec.b0_threshold}
    wanted = dict(_entity(text) for text in entities)
    items = scans(source, filters=wanted or None, b0_threshold=reader["b0_threshold"])
    outcomes = predict_study(items, source, out, StudyOptions(reader=reader, **options))
    counts = {
        status: sum(o.status == status for o in outcomes) for status in ("predicted", "resumed", "failed")
    }
    typer.echo(
        f"{', '.join(f'{n} {status}' for status, n in counts.items() if n) or 'no scans'}: {out / 'index.html'}"
    )
    if counts["failed"]:
        raise typer.Exit(FOUND)


def _entity(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"--filter is {text!r}, expected an entity and its value, such as dir=AP")
    return name, value


@contextmanager
def _without_what_nothing_needs() -> Iterator[None]:
    """MONAI is imported without the packages that it loads and prediction does not use: they take half of its time.

    Only for a process of the command line, where nothing else wants them; afterwards they can be imported as ever.
    """
    blocked = [name for name in UNNEEDED if name not in sys.modules]
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]  # None: as if it were not installed
    try:
        yield
    finally:
        for name in blocked:
            sys.modules.pop(name, None)


@app.command()
@_one_line_errors
def export(
    checkpoint: Annotated[str, typer.Argument(help="A released model (tissue, ...) or a trained model.pt.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .ts.")],
) -> None:
    """Write a trained network as TorchScript, which runs without this package."""
    from dmri_monai.integrations.torchscript import export_model

    typer.echo(export_model(checkpoint, out))


@app.command("export-bundle")
@_one_line_errors
def export_bundle(
    model: Annotated[str, typer.Argument(help="A released model (tissue, ...) or a trained model.pt.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
) -> None:
    """Write a complete MONAI bundle of one model: configs, metadata, weights, licence, documentation."""
    from dmri_monai.integrations.bundle_export import export_bundle as write

    typer.echo(write(model, out))


@app.command("label-studies")
@_one_line_errors
def label_studies(
    bids_dir: Annotated[Path, typer.Argument(help="BIDS folder.")],
    out: Annotated[Path, typer.Argument(help="Studies folder for MONAI Label.")],
    preview: Annotated[Literal["b0", "fa", "none"], typer.Option(help="3-D study for viewers.")] = "b0",
    labels: Annotated[
        str | None, typer.Option(help="Ending of derivatives that are final labels: dseg, lesion.")
    ] = None,
    bvecs: BvecsOption = "auto",
    b0_threshold: B0Option = 50.0,
) -> None:
    """Lay out the scans of a BIDS folder as MONAI Label wants them, by links."""
    from dmri_monai.integrations.monailabel import write_studies

    studies = write_studies(
        bids_dir, out, preview=preview, labels=labels, bvecs=bvecs, b0_threshold=b0_threshold
    )
    typer.echo(f"{len(studies)} studies in {out}")


@app.command("label-bundle")
@_one_line_errors
def label_bundle(
    checkpoint: Annotated[str, typer.Argument(help="A released model (tissue, ...) or a trained model.pt.")],
    out: Annotated[Path, typer.Argument(help="Folder to make: the model of a MONAI Label server.")],
) -> None:
    """Make a self-contained bundle of a trained model for a MONAI Label server."""
    from dmri_monai.integrations.monailabel import write_label_bundle

    typer.echo(write_label_bundle(checkpoint, out))


@app.command("register-model")
@_one_line_errors
def register_model(
    checkpoint: Annotated[Path, typer.Argument(help="Trained model.pt with its model.json beside it.")],
    name: Annotated[str, typer.Option(help="Registered model to add a version to.")],
    store: Annotated[
        str | None, typer.Option(help="MLflow store; by default that of the model's own training.")
    ] = None,
) -> None:
    """Enter a trained model into MLflow's Model Registry, ready for `mlflow models serve`."""
    from dmri_monai.integrations.mlflow import register_model as register

    typer.echo(register(checkpoint, name, store))


if __name__ == "__main__":
    app()
