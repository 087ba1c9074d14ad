"""Images of spherical-harmonic coefficients (fibre orientation distributions, shells of a scan) in MRtrix's form.

MRtrix3 stores real, even, orthonormal harmonics as volumes l = 0, 2, 4, ..., m = -l to l, of a function whose
directions are *scanner* (world) vectors, whatever the axes of the grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from dmri_monai.gradients import grid_rotation
from dmri_monai.io.nifti_volumes import read_nifti
from dmri_monai.io.writing import write_nifti
from dmri_monai.qspace.conventions import Basis, from_basis, order_of, to_basis
from dmri_monai.qspace.irreps_rotation import rotate_irreps
from dmri_monai.so3 import even_orders

__all__ = ["read_harmonics", "write_harmonics"]


def read_harmonics(path: str | Path, *, basis: Basis = "tournier07", legacy: bool = False) -> MetaTensor:
    """(C, X, Y, Z) coefficients, float32, in e3nn's convention and the world frame, with the RAS+ affine.

    C = 1, 6, 15, 28, 45, ... volumes of the file, in one of DIPY's bases; the default is that of MRtrix3
    (`legacy=True`: MRtrix 0.2).  `meta["irreps"]` says which orders ("1x0e+1x2e+1x4e"), `meta["direction_frame"]`
    is "world".  NaN is kept.  Raises ValueError or OSError naming the file.
    """
    image = read_nifti(path)
    try:
        irreps = _even_irreps(len(image))
        coefficients = from_basis(image.as_tensor(), basis, legacy=legacy)
    except ValueError as error:
        raise ValueError(f"{error}: {path}") from error
    result = MetaTensor(coefficients, meta=image.meta)
    result.meta.update(irreps=irreps, direction_frame="world")
    return result


def write_harmonics(
    path: str | Path,
    coefficients: MetaTensor,
    *,
    frame: Literal["world", "voxel"] = "world",
    basis: Basis = "tournier07",
    legacy: bool = False,
) -> None:
    """Write `coefficients` (C, X, Y, Z), in e3nn's convention, so that MRtrix3 (or DIPY) reads the same function.

    frame: that of the coefficients; "voxel" ones, as networks give them, are turned by the image's affine.
    basis, legacy: as in :func:`read_harmonics`.  Raises TypeError for an image without affine; ValueError naming
    the file where C is not 1, 6, 15, ... or the image says that it is in the other frame.
    """
    if not isinstance(coefficients, MetaTensor):
        kind = type(coefficients).__name__
        raise TypeError(f"coefficients are {kind}, expected MetaTensor with an affine, for {path}")
    stated = coefficients.meta.get(
        "direction_frame", "voxel" if "voxel_frame" in coefficients.meta else frame
    )
    if frame not in ("world", "voxel") or stated != frame:
        raise ValueError(f"frame is {frame!r}, the coefficients are in the {stated} frame, for {path}")
    try:
        world = _in_world(coefficients, frame)
        values = to_basis(world, basis, legacy=legacy)
    except ValueError as error:
        raise ValueError(f"{error}, for {path}") from error
    write_nifti(path, values, coefficients.affine)


def _in_world(coefficients: MetaTensor, frame: str) -> Tensor:
    values = coefficients.detach().cpu().as_subclass(Tensor).double()
    if values.ndim != 4:
        raise ValueError(f"coefficients have shape {tuple(values.shape)}, expected (C, X, Y, Z)")
    irreps = _even_irreps(len(values))
    if frame == "world":
        return values
    return rotate_irreps(
        values.unsqueeze(0), irreps, grid_rotation(torch.as_tensor(coefficients.affine).cpu())
    )[0]


def _even_irreps(n: int) -> str:
    return "+".join(f"1x{order}e" for order in even_orders(order_of(n)))
