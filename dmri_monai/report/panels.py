"""The pictures of one case: for each plane a row of panels that scroll together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.maps import brain_mask, direction_maps, mean_b0
from dmri_monai.report.case import Case, load_case
from dmri_monai.report.colour import class_colours, direction_colours, hex_colour
from dmri_monai.report.slices import PLANES, Convention, Grid, View, label_uri, picture_uri, png_uri, sprite
from dmri_monai.report.sphere import sphere_png

__all__ = ["Panel", "Plane", "Rendered", "render_case"]

FULL_FA = 0.8  # shown at full brightness: single-fibre white matter hardly reaches 1
TITLES = {"prediction": "Prediction", "truth": "Ground truth"}


@dataclass(frozen=True)
class Panel:
    """One sprite (`base`, data URI) with an optional transparent `overlay` and its text alternative."""

    title: str
    base: str
    alt: str
    overlay: str | None = None


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


def render_case(case: Case, *, max_slices: int = 24, convention: Convention = "radiological") -> Rendered:
    """Pictures and facts of `case`, up to `max_slices` slices a plane."""
    image, table, layers = load_case(case)
    plain, affine = image.as_tensor().detach().cpu(), image.affine.detach().cpu()
    b0 = mean_b0(plain, table)
    mask = brain_mask(b0)
    grid = Grid(affine.numpy(), tuple(b0.shape), convention)
    colours = class_colours(_labels(case, layers))
    volumes = {"Mean b0": _gray(b0, mask)}
    maps = direction_maps(plain, table, affine, mask)
    if maps is not None:
        volumes["Direction-encoded FA"] = direction_colours(maps.fa / FULL_FA, maps.v1_world)
    labels = {TITLES[k]: layers.pop(k).long().cpu().numpy() for k in TITLES if k in layers}
    volumes |= {name: _gray(volume.float().cpu(), mask) for name, volume in layers.items()}
    volumes = {name: grid.canonical(v) for name, v in volumes.items()}
    labels = {name: grid.canonical(v) for name, v in labels.items()}
    window = grid.canonical(mask.numpy())
    planes = [
        _plane(case.name, grid, grid.view(p, window, max_slices), volumes, labels, colours) for p in PLANES
    ]
    shells = ", ".join(f"{len(s.indices)} at b = {s.bval:.0f} s/mm²" for s in table.shells()) or "none"
    facts = {"Grid": " × ".join(map(str, b0.shape)), "Voxel (mm)": _spacing(affine)}
    facts |= {"b0 volumes": str(int(table.b0_mask.sum())), "Directions": shells}
    facts["Table SHA-256"] = table.sha256
    if maps is None:
        facts["Direction-encoded FA"] = "not shown: the table does not determine a tensor"
    legend = tuple((case.class_names.get(k, f"class {k}"), hex_colour(rgb)) for k, rgb in colours.items())
    alt = f"{case.name}: gradient directions on the sphere, antipodes faint: {shells}"
    return Rendered(
        case.name, tuple(planes), png_uri(sphere_png(table)), alt, legend, facts, dict(case.metrics)
    )


def _plane(
    name: str,
    grid: Grid,
    view: View,
    volumes: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    colours: dict[int, tuple[int, int, int]],
) -> Plane:
    left, right, *_ = view.letters
    where = f"{view.plane} slices, {left} on the left and {right} on the right"
    panels = []
    bases = {}
    for title, volume in volumes.items():
        bases[title] = picture_uri(sprite(grid.pictures(volume, view)))
        meaning = " (red left-right, green front-back, blue up-down)" if volume.ndim == 4 else ""
        panels.append(Panel(title, bases[title], f"{name}: {title.lower()}{meaning}, {where}"))
    for title, volume in labels.items():
        overlay = label_uri(grid.pictures(volume, view), colours)
        alt = f"{name}: {title.lower()} outlined on the mean b0, {where}"
        panels.append(Panel(title, bases["Mean b0"], alt, overlay))
    return Plane(view, tuple(panels))


def _labels(case: Case, layers: Mapping[str, Tensor]) -> list[int]:
    found = set(case.class_names)
    for name in set(TITLES) & set(layers):
        found |= set(torch.unique(layers[name].long()).tolist())
    return sorted(found)


def _gray(volume: Tensor, mask: Tensor) -> np.ndarray:
    """`volume` scaled to 0..255 between 0 (or its minimum) and the 99th percentile inside `mask`."""
    finite = volume.nan_to_num()
    values = np.asarray(finite[mask] if mask.any() else finite.flatten())
    low, high = min(0.0, float(values.min())), float(np.percentile(values, 99))
    scaled = (np.asarray(finite) - low) / max(high - low, 1e-12)
    return (255 * scaled.clip(0, 1)).round().astype(np.uint8)


def _spacing(affine: Tensor) -> str:
    return " × ".join(f"{v:.3g}" for v in affine[:3, :3].norm(dim=0).tolist())
