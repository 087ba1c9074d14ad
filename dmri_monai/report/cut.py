"""One slice in a matplotlib figure: maps, and fibre orientation densities as shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dmri_monai.qspace.conventions import order_of
from dmri_monai.report.slices import PLANES, Convention, Grid, View
from dmri_monai.so3 import sh_basis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Cut"]

SPHERE = "symmetric724"  # of DIPY: a lobe of order 8 loses at most a tenth of its length between the points
FILL = 0.6  # of a voxel's shorter side, that the radius of a full shape takes
FULL = 90  # percentile of the peaks in a figure, from which on shapes are full
FAINT = 0.08  # of a full shape: what is smaller everywhere is not drawn
AMBIENT = 0.45  # brightness of a face seen edge-on; 1 where it faces the reader


@dataclass(frozen=True)
class Cut:
    """One slice through a grid, and what part of it a figure shows.  Slices are those of the grid: never resampled.

    affine (4, 4), shape (X, Y, Z): of the grid.  at_mm (3,): RAS+ world point that lies in the slice and in the middle
    of the figure; without it the centre of the grid.  width_mm: side of the square around it; without it the whole
    slice.  plane: "axial", "coronal" or "sagittal", by the nearest axes of the grid.
    """

    affine: Tensor | np.ndarray
    shape: tuple[int, ...]
    plane: str = "axial"
    at_mm: Sequence[float] | None = None
    width_mm: float | None = None
    convention: Convention = "radiological"

    def __post_init__(self) -> None:
        if self.plane not in PLANES:
            raise ValueError(f"plane is {self.plane!r}, expected one of {', '.join(PLANES)}")

    def show(self, axes: Axes, volume: Tensor | np.ndarray, **options: Any) -> Any:
        """Draw `volume` (X, Y, Z), or (X, Y, Z, 3) of colours; options: of matplotlib's `imshow`, whose image it
        returns.  Letters at the edges say where left, right, front, back, up and down are.
        """
        view = self._view
        right_mm, down_mm = 1 / np.linalg.norm(self._place, axis=1)
        look = {"cmap": "gray", "interpolation": "nearest", "aspect": down_mm / right_mm} | options
        drawn = axes.imshow(self._picture(volume), **look)
        axes.set(xticks=[], yticks=[])
        places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))
        sides = (("left", "center"), ("right", "center"), ("center", "top"), ("center", "bottom"))
        for letter, place, (ha, va) in zip(view.letters, places, sides, strict=True):
            axes.text(*place, letter, ha=ha, va=va, color="white", fontsize=8, transform=axes.transAxes)
        return drawn

    def show_densities(
        self, axes: Axes, density: Tensor, largest: float | None = None, fill: float = FILL
    ) -> None:
        """Draw `density` (n_coef, X, Y, Z), even harmonics in the RAS+ world frame such as `Prediction.image`, over
        what :meth:`show` has drawn.

        In every voxel stands the surface whose distance from the centre is the density in that direction, seen across
        the slice; red left-right, green front-back, blue up-down.  largest: the density whose shape reaches `fill` of
        the voxel's shorter side; by default what a tenth of the shown voxels exceed, whose shapes are no larger.
        Negative densities count as 0.
        """
        from matplotlib.collections import PolyCollection

        vertices, faces = _sphere()
        picture = self._picture(density.detach().cpu().movedim(0, -1))
        basis = sh_basis(density.new_tensor(vertices).double().cpu(), order_of(len(density))).numpy()
        values = np.nan_to_num(picture.reshape(-1, len(density))).astype(float) @ basis.T  # (V, P)
        values = values.clip(min=0)
        peak = values.max(axis=1)
        if not (peak > 0).any():
            return
        full = largest or float(np.percentile(peak[peak > FAINT * peak.max()], FULL))
        drawn = np.flatnonzero(peak > FAINT * full)
        cell_mm = float((1 / np.linalg.norm(self._place, axis=1)).min())
        radius = values[drawn] / np.maximum(peak[drawn], full)[:, None] * fill * cell_mm
        points = (radius[:, :, None] * vertices)[:, faces]  # (V, F, 3 corners, 3), mm in the world
        normals = np.cross(points[:, :, 1] - points[:, :, 0], points[:, :, 2] - points[:, :, 0])
        towards = np.linalg.norm(normals, axis=-1)
        towards = (normals @ self._reader) / np.maximum(towards, 1e-12)  # 1: faces the reader
        rows, columns = np.divmod(drawn, picture.shape[1])
        corners = points @ self._place.T + np.stack([columns, rows], axis=1)[:, None, None]
        front = towards > 0
        depth = points.mean(axis=2) @ self._reader
        order = np.argsort(depth[front], kind="stable")  # of all voxels together: shapes may overlap
        middle = np.abs(vertices[faces].mean(axis=1))
        colour = np.broadcast_to(middle / middle.max(axis=1, keepdims=True), points.shape[:2] + (3,))
        shade = AMBIENT + (1 - AMBIENT) * towards[..., None]
        coloured = (colour * shade)[front][order]
        axes.add_collection(
            PolyCollection(corners[front][order], facecolors=coloured, edgecolors=coloured, linewidths=0.2),
            autolim=False,
        )

    @property
    def _grid(self) -> Grid:
        return Grid(np.asarray(self.affine, dtype=float), tuple(self.shape), self.convention)

    @property
    def _place(self) -> np.ndarray:
        """(2, 3): pixels to the right and down of a world vector in mm."""
        return self._grid.in_picture(self.plane)

    @property
    def _reader(self) -> np.ndarray:
        """(3,) unit world vector from the picture to who looks at it: down × right."""
        right, down = np.linalg.pinv(self._place).T
        towards = np.cross(down, right)
        unit: np.ndarray = towards / np.linalg.norm(towards)
        return unit

    @property
    def _view(self) -> View:
        """ValueError for a point outside of the grid."""
        grid = self._grid
        affine, counts = grid.canonical_affine, grid.canonical_shape
        at = (np.array(counts) - 1) / 2
        if self.at_mm is not None:
            at = np.linalg.solve(affine, [*self.at_mm, 1.0])[:3]
        index = np.rint(at).astype(int)
        if (index < 0).any() or (index >= counts).any():
            raise ValueError(f"at_mm = {self.at_mm} lies outside of the grid of {self.shape} voxels")
        shown = [slice(0, n) for n in counts]
        if self.width_mm is not None:
            half = np.rint(self.width_mm / 2 / np.linalg.norm(affine[:3, :3], axis=0)).astype(int)
            shown = [
                slice(max(0, i - h), min(n, i + h + 1)) for i, h, n in zip(index, half, counts, strict=True)
            ]
        return grid.view_of(self.plane, (int(index[PLANES[self.plane][0]]),), shown)

    def _picture(self, volume: Any) -> np.ndarray:
        """(rows, columns, ...) of `volume` (X, Y, Z, ...); ValueError for another grid."""
        values = np.asarray(volume)
        if values.shape[:3] != tuple(self.shape):
            raise ValueError(f"volume of {values.shape[:3]} voxels in a cut through {tuple(self.shape)}")
        return self._grid.pictures(self._grid.canonical(values), self._view)[0]


@cache
def _sphere() -> tuple[np.ndarray, np.ndarray]:
    """(P, 3) unit vectors and (F, 3) the corners of faces, in the order in which their normals point outwards."""
    from dipy.data import get_sphere

    sphere = get_sphere(name=SPHERE)
    vertices, faces = np.asarray(sphere.vertices), np.asarray(sphere.faces).astype(int)
    a, b, c = vertices[faces].swapaxes(0, 1)
    inwards = (np.cross(b - a, c - a) * a).sum(axis=1) < 0
    faces[inwards] = faces[inwards][:, ::-1]
    return vertices, faces
