"""Slices of a volume for display: closest canonical orientation, edge letters, and sprites.

A sprite is all shown slices of one axis stacked into one picture, top to bottom: the page moves it behind a
window. Slices are never resampled; the axes are only permuted and flipped to the nearest RAS+ order.
"""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import nibabel as nib
import numpy as np
from PIL import Image

__all__ = ["Grid", "View", "image_uri", "label_uri", "picture_uri", "png_uri", "sprite"]

Convention = Literal["radiological", "neurological"]
# axis across the slices, then those of a picture's columns and rows (rows run towards anterior or superior)
PLANES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
MAX_SIDE = 192
OBLIQUE = 0.34  # a direction more than 20 degrees off an axis gets a second letter
FILL_ALPHA = 56
MARGIN = 3  # voxels of air around what is shown


@dataclass(frozen=True)
class View:
    """One plane of a grid: which slices are shown and what stands at the edges of the picture.

    letters: left, right, top, bottom.  aspect: width over height in millimetres.  shown: ranges of the canonical axes
    of a picture's columns and rows; what lies outside is air.
    """

    plane: str
    indices: tuple[int, ...]
    count: int
    letters: tuple[str, str, str, str]
    aspect: float
    shown: tuple[slice, slice]


@dataclass(frozen=True)
class Grid:
    """Display geometry of a grid with `affine` (4, 4) and spatial `shape`, in closest canonical order.

    radiological: the patient's left is on the picture's right.
    """

    affine: np.ndarray
    shape: tuple[int, ...]
    convention: Convention = "radiological"

    def canonical(self, volume: np.ndarray) -> np.ndarray:
        """`volume` (X, Y, Z, ...) with its axes permuted and flipped to the nearest RAS+ order."""
        return np.asarray(nib.orientations.apply_orientation(volume, nib.io_orientation(self.affine)))

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        """Spatial shape of a volume returned by `canonical`."""
        return tuple(self.shape[axis] for axis in nib.io_orientation(self.affine)[:, 0].argsort())

    @property
    def canonical_affine(self) -> np.ndarray:
        """(4, 4) affine of a volume returned by `canonical`."""
        ornt = nib.io_orientation(self.affine)
        return np.asarray(self.affine @ nib.orientations.inv_ornt_aff(ornt, self.shape))

    def view(self, plane: str, mask: np.ndarray, max_slices: int) -> View:
        """Geometry of `plane`: up to `max_slices` slices, and of each what holds `mask` (canonical, bool)."""
        first, last = _extent(mask, PLANES[plane][0])
        chosen = np.unique(np.linspace(first, last, min(max_slices, last - first + 1)).round().astype(int))
        shown = [
            slice(max(0, low - MARGIN), high + 1 + MARGIN)
            for low, high in (_extent(mask, a) for a in range(3))
        ]
        return self.view_of(plane, tuple(chosen.tolist()), shown)

    def view_of(self, plane: str, indices: tuple[int, ...], shown: Sequence[slice]) -> View:
        """Geometry of the slices `indices` of `plane`; shown: ranges of the three canonical axes."""
        across, column, row = PLANES[plane]
        axes = self.canonical_affine[:3, :3]
        counts = self.canonical_shape
        size = np.linalg.norm(axes, axis=0) * [len(range(n)[s]) for n, s in zip(counts, shown, strict=True)]
        right, top = axes[:, column], axes[:, row]
        if self._mirrored(column):
            right = -right
        letters = (edge_letters(-right), edge_letters(right), edge_letters(top), edge_letters(-top))
        aspect = float(size[column] / size[row])
        return View(plane, indices, counts[across], letters, aspect, (shown[column], shown[row]))

    def in_picture(self, plane: str) -> np.ndarray:
        """(2, 3): how many pixels to the right and down a world vector in mm reaches in a picture of `plane`."""
        _, column, row = PLANES[plane]
        voxels = np.linalg.inv(self.canonical_affine[:3, :3])
        return np.stack([-voxels[column] if self._mirrored(column) else voxels[column], -voxels[row]])

    def pictures(self, volume: np.ndarray, view: View) -> list[np.ndarray]:
        """Pictures (rows, columns, ...) of the slices of `view`, top row first; `volume` is canonical."""
        across, column, _ = PLANES[view.plane]
        pictures = []
        for index in view.indices:
            picture = np.swapaxes(np.take(volume, index, axis=across)[view.shown], 0, 1)[::-1]
            pictures.append(picture[:, ::-1] if self._mirrored(column) else picture)
        return pictures

    def _mirrored(self, column: int) -> bool:
        return column == 0 and self.convention == "radiological"


def _extent(mask: np.ndarray, axis: int) -> tuple[int, int]:
    """First and last index along `axis` where `mask` holds; all of it for an empty one."""
    inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
    return (int(inside[0]), int(inside[-1])) if len(inside) else (0, mask.shape[axis] - 1)


def edge_letters(direction: np.ndarray) -> str:
    """Anatomical letters of a world direction (3,), the closest axis first.

    >>> edge_letters(np.array([0.0, -2.0, 0.0])), edge_letters(np.array([-0.9, 0.0, 0.44]))
    ('P', 'LS')
    """
    unit = np.asarray(direction, dtype=float) / np.linalg.norm(direction)
    letters = [("R", "L"), ("A", "P"), ("S", "I")]
    order = [a for a in np.argsort(-np.abs(unit), kind="stable") if abs(unit[a]) > OBLIQUE]
    return "".join(letters[a][int(unit[a] < 0)] for a in order)


def sprite(pictures: list[np.ndarray]) -> np.ndarray:
    """`pictures` stacked top to bottom, sides longer than 192 thinned out, small ones enlarged.

    Enlarged by whole pixels: browsers smooth over one pixel, which would mix the slices of a small grid.
    """
    step = -(-max(pictures[0].shape[:2]) // MAX_SIDE)
    zoom = max(1, MAX_SIDE // max(pictures[0].shape[:2]))
    stack = np.concatenate([p[::step, ::step] for p in pictures])
    return np.ascontiguousarray(stack.repeat(zoom, axis=0).repeat(zoom, axis=1))


def picture_uri(pixels: np.ndarray) -> str:
    """Data URI of `pixels` (rows, columns) or (rows, columns, 3), uint8: JPEG or PNG, the smaller one."""
    image = Image.fromarray(pixels)
    return min(_uri("JPEG", image, quality=85, subsampling=0), _uri("PNG", image), key=len)


def png_uri(content: bytes) -> str:
    """Data URI of a PNG file's bytes."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


def label_uri(pictures: list[np.ndarray], colours: dict[int, tuple[int, int, int]]) -> str:
    """Data URI of a transparent sprite: every class filled lightly and outlined in its colour.

    pictures: (rows, columns) integer labels; classes without a colour are left out.
    """
    zoom = max(1, 384 // max(pictures[0].shape))
    step = -(-max(pictures[0].shape) // (2 * MAX_SIDE))
    palette = sorted(set(colours.values()))
    index = {label: palette.index(rgb) for label, rgb in colours.items()}
    large = [np.kron(p[::step, ::step], np.ones((zoom, zoom), int)) for p in pictures]
    image = Image.fromarray(np.concatenate([_outlined(p, index, width=1 + (zoom >= 4)) for p in large]))
    image.putpalette([0, 0, 0] + [value for rgb in palette for value in (*rgb, *rgb)])
    return image_uri(image, transparency=bytes([0] + [FILL_ALPHA, 255] * len(palette)))


def image_uri(image: Image.Image, transparency: bytes) -> str:
    """Data URI of a palette image as PNG; transparency: opacity (0 to 255) of the palette's first entries."""
    return _uri("PNG", image, transparency=transparency, optimize=True)


def _outlined(labels: np.ndarray, index: dict[int, int], width: int) -> np.ndarray:
    """Palette entries of a picture: 0 elsewhere, 1 + 2 i inside the class with index i, 2 + 2 i on its rim."""
    edge = np.zeros(labels.shape, bool)
    for axis, step in itertools.product((0, 1), range(-width, width + 1)):
        edge |= labels != _moved(labels, step, axis)
    drawn = np.zeros(labels.shape, np.uint8)
    for label, i in index.items():
        drawn[labels == label] = 1 + 2 * i
        drawn[(labels == label) & edge] = 2 + 2 * i
    return drawn


def _moved(labels: np.ndarray, step: int, axis: int) -> np.ndarray:
    """`labels` moved by `step` along `axis`, its border repeated."""
    return labels.take(np.clip(np.arange(labels.shape[axis]) - step, 0, labels.shape[axis] - 1), axis=axis)


def _uri(kind: str, image: Image.Image, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()
