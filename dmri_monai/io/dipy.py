"""DIPY's reading of a `.bvec` file: along the image's own axes, whatever the determinant of its affine.

On right-handed images (positive determinant) it differs from FSL's reading by the sign of x.  QSIPrep writes such
files.
Reference: https://github.com/dipy/dipy/issues/1047
"""

from __future__ import annotations

from torch import Tensor

from dmri_monai.gradients import grid_rotation

__all__ = ["world_from_dipy"]


def world_from_dipy(affine: Tensor) -> Tensor:
    """(3, 3) M with v_world = M v_file, for vectors along the axes of an image with `affine` (4, 4)."""
    return grid_rotation(affine)
