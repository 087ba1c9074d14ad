"""The pictures of one case: for each plane a row of panels that scroll together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.qspace.direction_maps import DirectionMaps, direction_maps
from dmri_monai.report.artifact_record import artifact_rows, recorded_artifacts
from dmri_monai.report.case import Case, load_case
from dmri_monai.report.colour import class_colours, direction_colours, hex_colour
from dmri_monai.report.glyphs import sticks_uri
from dmri_monai.report.slices import PLANES, Convention, Grid, View, label_uri, picture_uri, png_uri, sprite
from dmri_monai.report.sphere import sphere_png

__all__ = ["Panel", "Plane", "Rendered", "render_case"]

FULL_FA = 0.8  # shown at full brightness: single-fibre white matter hardly reaches 1
MIN_FA = 0.15  # below it the tensor's direction is mostly noise
CODE = "red left-right, green front-back, blue up-down"
TITLES = {"prediction": "Prediction", "truth": "Ground truth"}


@dataclass(frozen=True)
class Panel:
    """One sprite (`base`, data URI) with an optional transparent `overlay` and its text alternative.

    sticks: the overlay is thin coloured lines: the base is darkened, and the panel is larger.
    """

    title: str
    base: str
    alt: str
    overlay: str | None = None
    sticks: bool = False


@dataclass(frozen=True)
class Plane:
    """The panels of one plane and the geometry they share."""

    view: View
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Rendered:
    """All a page needs of one case; `sphere` is a data URI, `legend` holds (class name, CSS colour)."""

    name: str
    planes: tuple[Plane, ...]
    sphere: str
    sphere_alt: str
    legend: tuple[tuple[str, str], ...]
    facts: Mapping[str, str]
    metrics: Mapping[str, float]
    artifacts: tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Layers:
    """What is drawn, by title, in canonical order: pictures (X, Y, Z) or (X, Y, Z, 3) uint8, integer labels (X, Y, Z),
    and peaks (X, Y, Z, 3n) in the world frame with the length of a full stick.
    """

    pictures: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    peaks: dict[str, tuple[np.ndarray, float]]
    colours: dict[int, tuple[int, int, int]]


def render_case(case: Case, *, max_slices: int = 24, convention: Convention = "radiological") -> Rendered:
    """Pictures and facts of `case`, up to `max_slices` slices per plane."""
    image, table, given = load_case(case)
    plain, affine = image.as_tensor().detach().cpu(), image.affine.detach().cpu()
    b0 = mean_b0(plain, table.bvals, table.b0_threshold, without_b0="lowest shell")
    mask = head_mask(b0)
    grid = Grid(affine.numpy(), tuple(b0.shape), convention)
    maps = direction_maps(plain, table, affine, mask)
    layers = _layers(case, given, b0, mask, maps, grid)
    window = grid.canonical(mask.numpy())
    planes = tuple(_plane(case.name, grid, grid.view(p, window, max_slices), layers) for p in PLANES)
    shells = ", ".join(f"{len(s.indices)} at b = {s.bval:.0f} s/mm²" for s in table.shells()) or "none"
    facts = {"Grid": " × ".join(map(str, b0.shape)), "Voxel (mm)": _spacing(affine)}
    facts |= {"b0 volumes": str(int(table.b0_mask.sum())), "Directions": shells}
    facts["Table SHA-256"] = table.sha256
    if maps is None:
        facts["Direction-encoded FA"] = "not shown: the table does not determine a tensor"
    names = case.class_names
    legend = tuple((names.get(k, f"class {k}"), hex_colour(rgb)) for k, rgb in layers.colours.items())
    alt = f"{case.name}: gradient directions on the sphere, antipodes faint: {shells}"
    sphere = png_uri(sphere_png(table))
    return Rendered(case.name, planes, sphere, alt, legend, facts, dict(case.metrics), _artifacts(case))


def _layers(
    case: Case, given: dict[str, Tensor], b0: Tensor, mask: Tensor, maps: DirectionMaps | None, grid: Grid
) -> Layers:
    named = {TITLES[name]: given.pop(name).cpu() for name in TITLES if name in given}
    labels = {title: volume.long() for title, volume in named.items() if volume.ndim == 3}
    peaks = {title: volume.float() for title, volume in named.items() if volume.ndim == 4}
    pictures = {"Mean b0": _gray(b0, mask)[0]}
    if maps is not None:
        pictures["Direction-encoded FA"] = direction_colours(maps.fa / FULL_FA, maps.v1_world)
        peaks = {"Tensor's direction": maps.v1_world * (maps.fa * (maps.fa > MIN_FA) / FULL_FA)} | peaks
    for name, volume in given.items():
        gray, (low, high) = _gray(volume.float().cpu(), mask)
        pictures[f"{name}, {low:.3g} to {high:.3g}"] = gray
    found = set(case.class_names).union(*(torch.unique(volume).tolist() for volume in labels.values()))
    return Layers(
        {title: grid.canonical(volume) for title, volume in pictures.items()},
        {title: grid.canonical(volume.numpy()) for title, volume in labels.items()},
        {title: (grid.canonical(p.movedim(0, -1).numpy()), _longest(p)) for title, p in peaks.items()},
        class_colours(sorted(found)) if labels else {},
    )


def _plane(name: str, grid: Grid, view: View, layers: Layers) -> Plane:
    left, right, *_ = view.letters
    where = f"{view.plane} slices, {left} on the left and {right} on the right"
    panels = []
    bases = {}
    for title, volume in layers.pictures.items():
        bases[title] = picture_uri(sprite(grid.pictures(volume, view)))
        meaning = f" ({CODE})" if volume.ndim == 4 else ""
        panels.append(Panel(title, bases[title], f"{name}: {title.lower()}{meaning}, {where}"))
    for title, (peaks, longest) in layers.peaks.items():
        alt = f"{name}: {title.lower()} as sticks ({CODE}), {where}"
        panels.append(
            Panel(title, bases["Mean b0"], alt, sticks_uri(peaks, grid, view, longest), sticks=True)
        )
    for title, volume in layers.labels.items():
        overlay = label_uri(grid.pictures(volume, view), layers.colours)
        alt = f"{name}: {title.lower()} outlined on the mean b0, {where}"
        panels.append(Panel(title, bases["Mean b0"], alt, overlay))
    return Plane(view, tuple(panels))


def _longest(peaks: Tensor) -> float:
    """Length of a full stick: the 99th percentile of the first of the peaks (3n, X, Y, Z), where there is any."""
    length = peaks[:3].norm(dim=0)
    present = length[length > 0]  # false for NaN
    return float(np.percentile(present.numpy(), 99)) if present.numel() else 1.0


def _artifacts(case: Case) -> tuple[Mapping[str, str], ...]:
    """What is known to have been simulated on the scan, from the sidecar of a file."""
    record = recorded_artifacts(case.image) if isinstance(case.image, str | Path) else None
    return () if record is None else tuple(artifact_rows(record))


def _gray(volume: Tensor, mask: Tensor) -> tuple[np.ndarray, tuple[float, float]]:
    """`volume` scaled to 0..255 between 0 (or its minimum) and the 99th percentile inside `mask`, and these two."""
    finite = volume.nan_to_num()
    values = np.asarray(finite[mask] if mask.any() else finite.flatten())
    low, high = min(0.0, float(values.min())), float(np.percentile(values, 99))
    scaled = (np.asarray(finite) - low) / max(high - low, 1e-12)
    return (255 * scaled.clip(0, 1)).round().astype(np.uint8), (low, high)


def _spacing(affine: Tensor) -> str:
    return " × ".join(f"{v:.3g}" for v in affine[:3, :3].norm(dim=0).tolist())
