"""The command that predicts: one scan, or a study."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from dmri_monai.cli.command import FOUND, BvecsOption, ModelsB0Option, checked_device, command
from dmri_monai.warning_lines import tell_warning

__all__ = ["predict"]

UNNEEDED = ("mlflow", "ignite", "matplotlib", "sklearn", "pandas", "skimage", "tensorboard")


@command()
def predict(
    scan: Annotated[
        Path,
        typer.Argument(help="DWI file (.nii, .nii.gz) with its sidecars, or a folder of scans (BIDS, HCP)."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write to; of a study: BIDS derivatives.")
    ],
    task: Annotated[
        str,
        typer.Option(
            help="A released model: tissue, fod, orientation, crossings, ...; or all, one per task."
        ),
    ] = "tissue",
    checkpoint: Annotated[
        Path | None, typer.Option(help="A model of your own, with its model.json beside it.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(callback=checked_device, help="cpu or cuda; if not given, cuda where there is one."),
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
            "--filter",
            help="Of a study: only scans with this BIDS entity, such as dir=AP; repeatable, an entity named twice "
            "takes either value.",
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
        from dmri_monai.prediction import load_model, predict_all
    from dmri_monai.scan import Scan

    loaded = [load_model(name, device) for name in models]
    _ = [model.task for model in loaded]  # a pretrained network is refused before the scan is read
    read = Scan.read(scan, **{"b0_threshold": loaded[0].spec.b0_threshold, **reader})
    told: set[str] = set()
    for prediction in predict_all(loaded, read, ensemble=ensemble, window=window):
        found = prediction.write(out, report=bool(report), overwrite=overwrite)
        for warning in found.warnings:
            if warning not in told:
                tell_warning(warning)
        told.update(found.warnings)
        for path in found.files.values():
            typer.echo(path)


def _models(task: str, checkpoint: Path | None) -> list[str | Path]:
    """Names of released models, or the path of one's own; ValueError for a task that has none."""
    if checkpoint is not None:
        return [checkpoint]
    from dmri_monai.inference.released import released_models, released_tasks

    if task == "all":
        return list(released_tasks())
    if task not in released_models():
        known = ", ".join(name for name in released_models() if name != "pretrained")
        raise ValueError(f"no released model for task {task!r}, only {known}, or all; give a --checkpoint")
    return [task]


def _predict_study(
    source: Path, out: Path, *, entities: list[str], reader: dict[str, Any], **options: Any
) -> None:
    """`predict` of a folder."""
    from dmri_monai.inference.released import find_weights
    from dmri_monai.inference.spec import ModelSpec, spec_path
    from dmri_monai.inference.study import StudyOptions, predict_study
    from dmri_monai.io import scans
    from dmri_monai.io.bids_names import parse_filters

    if "b0_threshold" not in reader:
        spec = ModelSpec.load(spec_path(find_weights(options["models"][0])))
        reader = {**reader, "b0_threshold": spec.b0_threshold}
    items = scans(source, filters=parse_filters(entities), b0_threshold=reader["b0_threshold"])
    outcomes = predict_study(items, source, out, StudyOptions(reader=reader, **options))
    counts = {
        status: sum(o.status == status for o in outcomes) for status in ("predicted", "resumed", "failed")
    }
    typer.echo(
        f"{', '.join(f'{n} {status}' for status, n in counts.items() if n) or 'no scans'}: {out / 'index.html'}"
    )
    if counts["failed"]:
        raise typer.Exit(FOUND)


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
