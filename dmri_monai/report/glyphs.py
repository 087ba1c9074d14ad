"""Fibre directions as sticks in the plane of a slice, coloured by their direction in the world."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dmri_monai.report.slices import Grid, View, image_uri

__all__ = ["stick_colours", "sticks_uri"]

CELLS = 48  # most sticks along a side: more would be too small to see on a phone
CELL = 12  # pixels
FILL = 0.95  # of its cell, that a full stick in the plane takes
LEVELS = 6  # of each channel: 216 colours, and the border
DARK, CLEAR, BORDER = 72, 0, 1  # the dark channels are lifted: pure blue would be too dark on black
PALETTE = [0, 0, 0, 0, 0, 0]
PALETTE += [
    round(DARK + (255 - DARK) * level / (LEVELS - 1))
    for rgb in np.ndindex(LEVELS, LEVELS, LEVELS)
    for level in rgb
]


@dataclass(frozen=True)
class Layout:
    """How the sticks of one plane lie.

    place: (2, 3) of `Grid.in_picture`.  steps: every how many pixels right and down there is one.  cell_mm: length of
    a full stick's cell.  size: of the drawn picture, (columns, rows), as dense in both directions.
    """

    place: np.ndarray
    steps: np.ndarray
    cell_mm: float
    size: np.ndarray

    @classmethod
    def of(cls, place: np.ndarray, columns: int, rows: int) -> Layout:
        """Layout of a slice of that many pixels."""
        pixel_mm = 1 / np.linalg.norm(place, axis=1)
        extent_mm = pixel_mm * [columns, rows]
        finest = pixel_mm.min()
        apart_mm = finest * np.ceil(extent_mm.max() / CELLS / finest)
        steps = np.rint(apart_mm / pixel_mm).clip(min=1).astype(int)
        cell_mm = float((steps * pixel_mm).min())
        return cls(place, steps, cell_mm, np.rint(extent_mm * CELL / cell_mm).astype(int))


def sticks_uri(peaks_world: np.ndarray, grid: Grid, view: View, longest: float) -> str:
    """Data URI of a transparent sprite of the sticks of a field.

    peaks_world: (X, Y, Z, 3n) vectors, RAS+, at canonical voxels; zero and NaN are none.  A peak of length `longest`
    or more in the plane fills its cell; the shorter its part in the plane, the shorter the stick.
    """
    pictures = grid.pictures(peaks_world / longest, view)
    rows, columns, _ = pictures[0].shape
    layout = Layout.of(grid.in_picture(view.plane), columns, rows)
    image = Image.fromarray(np.concatenate([_drawn(p, layout) for p in pictures]))
    image.putpalette(PALETTE)
    return image_uri(image, transparency=bytes([CLEAR]))


def stick_colours(directions: np.ndarray) -> np.ndarray:
    """(n,) entries of `PALETTE` of world vectors (n, 3): red left-right, green front-back, blue up-down."""
    unit = np.abs(directions) / np.linalg.norm(directions, axis=1, keepdims=True)
    return 2 + np.rint(unit * (LEVELS - 1)).astype(int) @ [LEVELS**2, LEVELS, 1]


def _drawn(picture: np.ndarray, layout: Layout) -> np.ndarray:
    """(rows, columns) palette entries of one slice, `picture` (rows, columns, 3n)."""
    image = Image.new("P", tuple(layout.size.tolist()), CLEAR)
    draw = ImageDraw.Draw(image)
    right, down = layout.steps
    peaks = picture[down // 2 :: down, right // 2 :: right]
    peaks = peaks.reshape(*peaks.shape[:2], -1, 3)
    found = np.argwhere(np.linalg.norm(peaks, axis=-1) > 0)  # false for NaN
    vectors = peaks[tuple(found.T)]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1)
    scale = layout.size / picture.shape[1::-1]
    centres = (found[:, 1::-1] * layout.steps + layout.steps // 2 + 0.5) * scale - 0.5
    reach = 0.5 * FILL * layout.cell_mm * vectors @ layout.place.T * scale
    ends = np.concatenate([centres - reach, centres + reach], axis=1).tolist()
    for line, colour in zip(ends, stick_colours(vectors).tolist(), strict=True):
        draw.line(line, fill=BORDER, width=4)
        draw.line(line, fill=colour, width=2)
    return np.asarray(image)
