"""What all commands have in common: the application, how a command ends, options."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

import dmri_monai
from dmri_monai.signals import end_on_sigterm
from dmri_monai.warning_lines import warning_lines

__all__ = ["FOUND", "B0Option", "BvecsOption", "ModelsB0Option", "app", "checked_device", "command"]

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
FOUND, FAILED = 1, 2  # exit codes: a check found something; the command could not do its work

app = typer.Typer(
    help="Deep learning on diffusion MRI with MONAI.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def command(name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter a function as the command `name`, by default its own name.

    A user's error becomes one line on stderr and exit code 2; anything else keeps its traceback.  SIGTERM ends a
    command as Ctrl-C does, tidied up.
    """

    def enter(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> None:
            end_on_sigterm()
            try:
                function(*args, **kwargs)
            except (ValueError, OSError, MemoryError) as error:
                typer.echo(f"error: {' '.join(str(error).split()) or type(error).__name__}", err=True)
                raise typer.Exit(FAILED) from error

        return app.command(name)(wrapped)

    return enter


def checked_device(name: str | None) -> str | None:
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
