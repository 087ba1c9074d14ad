"""The gradient table as points in q-space."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmri_monai.gradients import GradientTable
from dmri_monai.io.writing import replacing
from dmri_monai.report.colour import hex_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["gradient_sphere", "sphere_png", "write_sphere"]

# hues of Okabe and Ito with a contrast of at least 3 on white, and a marker each: shells are not told apart by
# colour alone
COLOURS = ((0, 114, 178), (213, 94, 0), (0, 130, 95), (170, 80, 135), (0, 0, 0))
MARKERS = "o^sDv"


def gradient_sphere(table: GradientTable) -> Figure:
    """Figure of the b-vectors in the world frame at radius sqrt(b / max b), with one colour and marker per shell.

    Antipodes, which measure the same signal, are drawn faintly; b0 volumes are left out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(projection="3d")
    bvecs, b_max = table.bvecs.cpu().numpy(), max(float(table.bvals.max()), 1e-9)
    _wire(axes)
    for i, shell in enumerate(table.shells()):
        rgb, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        points = bvecs[shell.indices.numpy()] * (shell.bval / b_max) ** 0.5
        look = {"color": hex_colour(rgb), "marker": marker, "s": 18, "linewidths": 0}
        label = f"b = {shell.bval:.0f} s/mm² ({len(points)})"
        axes.scatter(*points.T, label=label, depthshade=False, **look)
        axes.scatter(*-points.T, alpha=0.18, depthshade=False, **look)
    if table.shells():
        figure.legend(loc="outside lower center", frameon=False, ncols=2, markerscale=1.5)
    return figure


def sphere_png(table: GradientTable, dpi: int = 130) -> bytes:
    """PNG file content of `gradient_sphere`."""
    buffer = io.BytesIO()
    gradient_sphere(table).savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def write_sphere(path: str | Path, table: GradientTable) -> None:
    """Write `gradient_sphere` as a PNG file."""
    with replacing(Path(path)) as (temporary,):
        temporary.write_bytes(sphere_png(table))


def _wire(axes: Any) -> None:
    angle = np.linspace(0, 2 * np.pi, 120)
    circle = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)])
    for shift in range(3):
        axes.plot(*np.roll(circle, shift, axis=0), color="0.8", linewidth=0.8)
    for axis, (negative, positive) in enumerate((("L", "R"), ("P", "A"), ("I", "S"))):
        tip = np.eye(3)[axis] * 1.15
        axes.plot(*np.stack([-tip, tip], axis=1), color="0.8", linewidth=0.8)
        axes.text(*(1.12 * tip), positive, ha="center", va="center")
        axes.text(*(-1.12 * tip), negative, ha="center", va="center")
    axes.set(xlim=(-0.85, 0.85), ylim=(-0.85, 0.85), zlim=(-0.85, 0.85))
    axes.set_box_aspect((1, 1, 1), zoom=1.05)
    axes.view_init(elev=22, azim=-60)
    axes.set_axis_off()
