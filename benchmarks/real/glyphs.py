"""Picture of one axial slice of a scan: the b0, and every voxel's fibre orientation density as a surface.

A surface's distance from the centre of its voxel is the density in that direction, coloured by it: red left-right,
green front-back, blue up-down.  All are drawn to one scale, seen from above: the patient's right is on the right.

Run: python -m benchmarks.real.glyphs SCAN OUT.png [--model fod] [--at 0.5] [--window X0 X1 Y0 Y1]
"""

from __future__ import annotations

import argparse
import logging
from math import pi, sqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmri_monai.prediction import load_model
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.qspace.fibre_density import DENSITY_ORDER, LEAST_FRACTION
from dmri_monai.report.slices import Grid
from dmri_monai.scan import Scan
from dmri_monai.so3 import sh_basis

SIZE = 1.2  # voxels, of the 99th percentile of the largest values
RINGS, SECTORS = 18, 24  # of a surface
LEAST = 0.03  # voxels: smaller faces are not drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="fod")
    parser.add_argument("--at", type=float, default=0.5, help="height of the slice, of the head's")
    parser.add_argument(
        "--window", type=int, nargs=4, help="voxels of the slice, left to right and back to front"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    scan = Scan.read(options.scan)
    density = load_model(options.model, "cpu").predict(scan).image.as_tensor()
    b0 = mean_b0(scan.signal, scan.table.bvals, scan.table.b0_threshold)
    grid = Grid(scan.affine.numpy(), tuple(b0.shape))
    head = grid.canonical(head_mask(b0).numpy())
    heights = np.flatnonzero(head.any((0, 1)))
    k = int(heights[round(options.at * (len(heights) - 1))])
    x0, x1, y0, y1 = options.window or (0, head.shape[0], 0, head.shape[1])
    part = (slice(x0, x1), slice(y0, y1), k)
    axes = grid.canonical_affine[:3, :3]
    axes = torch.from_numpy(axes / np.linalg.norm(axes, axis=0)).float()
    shown = torch.from_numpy(grid.canonical(density.movedim(0, -1).numpy())[part].copy())
    draw(options.out, grid.canonical(b0.numpy())[part], shown, axes)


def draw(path: Path, b0: np.ndarray, density: Tensor, axes: Tensor) -> None:
    """b0 (X, Y) and densities (X, Y, 45), world frame; axes (3, 3): columns are the grid's axes in the world."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.collections import PolyCollection

    polygons, colours = surfaces(density, axes)
    columns, rows = b0.shape
    figure, panels = pyplot.subplots(
        1, 2, figsize=(16, 8 * rows / columns), facecolor="black", layout="constrained"
    )
    grey = {"cmap": "gray", "origin": "lower", "vmin": 0, "vmax": float(np.percentile(b0, 99.5))}
    for panel, shade in zip(panels, (1.0, 0.35), strict=True):
        panel.imshow(b0.T * shade, **grey)
        panel.set(xlim=(-0.5, columns - 0.5), ylim=(-0.5, rows - 0.5), xticks=[], yticks=[])
    panels[1].add_collection(PolyCollection(polygons, facecolors=colours, edgecolors="none", rasterized=True))
    figure.savefig(path, dpi=100, facecolor="black")


def surfaces(density: Tensor, axes: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Faces (F, 4, 2) in voxels of the slice, those behind first, and their colours (F, 3)."""
    points = sphere()  # (RINGS + 1, SECTORS + 1, 3) in the grid's axes
    world = points @ axes.T
    basis = sh_basis(world.reshape(-1, 3), DENSITY_ORDER).to(density)
    there = density[..., 0] * sqrt(4 * pi) > LEAST_FRACTION
    values = (density[there] @ basis.T).clamp(min=0).unflatten(1, points.shape[:2])  # (V, rings, sectors)
    scale = SIZE / float(torch.quantile(values.flatten(1).amax(1)[:10_000], 0.99))
    centres = torch.nonzero(there).to(density)
    surface = values.unsqueeze(-1) * scale * points  # (V, rings, sectors, 3)
    corners = torch.stack(
        [surface[:, :-1, :-1], surface[:, 1:, :-1], surface[:, 1:, 1:], surface[:, :-1, 1:]], dim=3
    )
    depth = corners[..., 2].mean(3).flatten(1)
    faces = (corners[..., :2] + centres[:, None, None, None]).flatten(1, 2)
    middle = torch.nn.functional.normalize(
        (world[:-1, :-1] + world[1:, :-1] + world[1:, 1:] + world[:-1, 1:]).flatten(0, 1), dim=1
    )
    seen = values[:, :-1, :-1].flatten(1) * scale > LEAST
    order = depth.argsort(1)
    voxel = torch.arange(len(order)).unsqueeze(1).expand_as(order)
    kept = seen[voxel, order]
    return faces[voxel, order][kept].numpy(), middle.abs()[order][kept].clamp(max=1).numpy()


def sphere() -> Tensor:
    """(RINGS + 1, SECTORS + 1, 3) unit vectors."""
    polar = torch.linspace(0, pi, RINGS + 1)[:, None]
    around = torch.linspace(0, 2 * pi, SECTORS + 1)[None]
    return torch.stack(
        [polar.sin() * around.cos(), polar.sin() * around.sin(), polar.cos().expand_as(polar * around)],
        dim=-1,
    )


if __name__ == "__main__":
    main()
