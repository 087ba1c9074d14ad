"""Commands that simulate: phantom, artifacts."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from dmri_monai.cli.command import checked_device, command

__all__ = ["artifacts", "phantom"]

Scheme = Literal["random", "clinical-32", "single-64", "hcp-3shell"]  # those of dmri_monai.phantom


@command()
def phantom(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the BIDS data set to write.")],
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
    device: Annotated[
        str, typer.Option(callback=checked_device, help="Where to compute: cpu or cuda.")
    ] = "cpu",
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


@command()
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
