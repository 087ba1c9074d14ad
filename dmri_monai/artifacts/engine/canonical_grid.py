"""The grid on which artifacts are drawn and applied: array axes permuted and flipped to the nearest RAS+ axes.

Phase encoding and slice direction come as world vectors, so that storing the scan in another orientation
changes nothing: corrupt, then reorient equals reorient, then corrupt.
"""

from __future__ import annotations

from dataclasses import dataclass

import nibabel
import numpy as np
from torch import Tensor

__all__ = ["Reorientation"]


@dataclass(frozen=True)
class Reorientation:
    """Array axes to the canonical grid: canonical axis a is array axis `axes[a]`, reversed where
    `flipped[a]`.
    """

    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    @classmethod
    def to_canonical(cls, affine: Tensor) -> Reorientation:
        """Reorientation of an array with `affine` (4, 4) to the nearest RAS+ axes."""
        codes = nibabel.orientations.io_orientation(np.asarray(affine, dtype=np.float64))
        axes = np.argsort(codes[:, 0])
        x, y, z = (int(a) for a in axes)
        return cls((x, y, z), (bool(codes[x, 1] < 0), bool(codes[y, 1] < 0), bool(codes[z, 1] < 0)))

    def forward(self, image: Tensor) -> Tensor:
        """(..., X, Y, Z) array to the canonical grid, contiguous."""
        lead = image.ndim - 3
        moved = image.permute(*range(lead), *(lead + a for a in self.axes))
        return self._flip(moved).contiguous()

    def backward(self, image: Tensor) -> Tensor:
        """Canonical (..., X, Y, Z) back to the array's own axes, contiguous."""
        lead = image.ndim - 3
        places = (lead + self.axes.index(a) for a in range(3))
        return self._flip(image).permute(*range(lead), *places).contiguous()

    def _flip(self, image: Tensor) -> Tensor:
        dims = [a - 3 for a in range(3) if self.flipped[a]]
        return image.flip(dims) if dims else image

    def vectors(self, vectors: np.ndarray) -> np.ndarray:
        """(..., 3) vectors of the array's voxel frame in the canonical voxel frame."""
        return vectors[..., list(self.axes)] * np.where(self.flipped, -1.0, 1.0)

    def affine(self, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """(4, 4) affine of the canonical array, `shape` being the canonical (X, Y, Z)."""
        step = np.zeros((4, 4))
        step[3, 3] = 1.0
        for a, (axis, flipped) in enumerate(zip(self.axes, self.flipped, strict=True)):
            step[axis, a] = -1.0 if flipped else 1.0
            step[axis, 3] = shape[a] - 1 if flipped else 0.0
        return affine @ step
