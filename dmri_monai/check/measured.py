"""What a check looks at: raw signal, table, grid and slice direction, with or without MONAI around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable, grid_rotation

if TYPE_CHECKING:  # MONAI's import takes longer than a check
    from dmri_monai.scan import Scan

__all__ = ["Measured"]


@dataclass(frozen=True, eq=False)
class Measured:
    """signal (N, X, Y, Z) float32; table of N volumes, world frame; affine (4, 4) float64, RAS+ mm.

    slice_world: (3,) direction across the slices; None where nothing says it, the third array axis then.
    """

    signal: Tensor
    table: GradientTable
    affine: Tensor
    slice_world: Tensor | None = None

    @classmethod
    def of(cls, scan: Scan) -> Measured:
        return cls(scan.signal.detach().cpu(), scan.table, scan.affine, scan.acquisition.slice_world)

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size along the array axes."""
        return tuple(round(v, 4) for v in self.affine[:3, :3].norm(dim=0).tolist())

    @property
    def extent_mm(self) -> tuple[float, ...]:
        """Size of the grid along the array axes."""
        return tuple(n * s for n, s in zip(self.signal.shape[1:], self.spacing_mm, strict=True))

    @property
    def slice_axis(self) -> int:
        """Array axis across the slices."""
        if self.slice_world is None:
            return 2
        along = grid_rotation(self.affine).T @ torch.as_tensor(self.slice_world).double()
        return int(along.abs().argmax())

    @property
    def right_handed(self) -> bool:
        return bool(torch.linalg.det(self.affine[:3, :3]) > 0)
