"""Commands that take trained models elsewhere: export, MONAI Label, MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from dmri_monai.cli.command import B0Option, BvecsOption, command

__all__ = ["export", "export_bundle", "label_bundle", "label_studies", "register_model", "runs"]

Trained = Annotated[str, typer.Argument(help="A released model (tissue, ...) or a trained model.pt.")]


@command()
def export(
    checkpoint: Trained,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write, .ts.")],
) -> None:
    """Write a trained network as TorchScript, which runs without this package."""
    from dmri_monai.integrations.torchscript import export_model

    typer.echo(export_model(checkpoint, out))


@command("export-bundle")
def export_bundle(
    model: Trained,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
) -> None:
    """Write a complete MONAI bundle of one model: configs, metadata, weights, licence, documentation."""
    from dmri_monai.integrations.bundle_export import export_bundle as write

    typer.echo(write(model, out))


@command("label-studies")
def label_studies(
    bids_dir: Annotated[Path, typer.Argument(help="BIDS folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Studies folder for MONAI Label.")],
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


@command("label-bundle")
def label_bundle(
    checkpoint: Trained,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to make: the model of a MONAI Label server.")
    ],
) -> None:
    """Make a self-contained bundle of a trained model for a MONAI Label server."""
    from dmri_monai.integrations.monailabel import write_label_bundle

    typer.echo(write_label_bundle(checkpoint, out))


@command("register-model")
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


@command()
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
