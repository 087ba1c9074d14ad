"""Head motion between and within volumes, and the gradients that a moved head sees."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dmri_monai.artifacts.blockwise import blockwise, combine, exact_products
from dmri_monai.artifacts.magnitudes import (
    check_axis,
    check_finite,
    check_magnitude,
    check_shape,
    on_magnitude,
)
from dmri_monai.artifacts.spatial_fields import coordinates
from dmri_monai.gradients import B0_THRESHOLD, cluster_shells
from dmri_monai.qspace.shell_fit import sh_fit_matrix, supported_order
from dmri_monai.so3 import sh_basis

__all__ = [
    "acquisition_order",
    "gradient_nonlinearity",
    "interpolation_weights",
    "move",
    "rotation_matrix",
    "shuffle_slices",
    "turn_signal",
]


def rotation_matrix(vectors: Tensor) -> Tensor:
    """(..., 3, 3) rotations about `vectors` (..., 3), whose length is the angle in radians (right-handed)."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(cross)


@on_magnitude
def move(
    image: Tensor, *, rotations: Tensor, translations_mm: Tensor, spacing_mm: tuple[float, float, float]
) -> Tensor:
    """Every volume with the head moved rigidly: what was at x is at R x + t (x in mm from the centre of the
    grid).

    image: (N, X, Y, Z), any units.  rotations: (N, 3, 3) in the voxel frame (for a rotation W of the world
    that is Q^T W Q, Q = polar(affine)).  translations_mm: (N, 3) in the voxel frame.  spacing_mm: of the
    grid. Trilinear; nothing comes in from outside the grid.  Directions are not turned: see `turn_signal`.
    """
    check_shape("rotations", rotations, (*image.shape[:-3], 3, 3))
    check_shape("translations_mm", translations_mm, (*image.shape[:-3], 3))
    check_finite("rotations", rotations)
    check_finite("translations_mm", translations_mm)
    if min(spacing_mm) <= 0:
        raise ValueError(f"spacing_mm is {spacing_mm}, expected above 0")
    identity = torch.eye(3, dtype=rotations.dtype, device=rotations.device)
    error = (rotations @ rotations.mT - identity).detach().abs().max() if len(rotations) else torch.zeros(())
    if error > 1e-3:
        raise ValueError(f"rotations: R R^T differs from 1 by {float(error):.3g}, expected rotations")
    maps = _sampling_maps(rotations, translations_mm, image.shape[-3:], spacing_mm).flatten(0, -3)
    volumes = image.reshape(-1, *image.shape[-3:])
    parts = [_sample(volumes[rows], maps[rows.start].to(image)) for rows in _runs(maps)]
    return torch.cat(parts).view(image.shape)


def _sampling_maps(
    rotations: Tensor, translations_mm: Tensor, shape: torch.Size, spacing_mm: tuple[float, float, float]
) -> Tensor:
    """(N, 3, 4) output to input positions x -> R^T (x - t), in half grids (-1 to 1), components z, y, x."""
    half = torch.tensor(
        [max(0.5 * (n - 1) * s, 1e-6) for n, s in zip(shape, spacing_mm, strict=True)]
    ).double()
    back = rotations.double().cpu().mT
    linear = back * half[None, None, :] / half[None, :, None]
    offset = -(back @ translations_mm.double().cpu()[..., None]) / half[None, :, None]
    return torch.cat([linear.flip(-1, -2), offset.flip(-2)], -1)


def _runs(maps: Tensor) -> list[slice]:
    """Neighbouring volumes of one pose, which share their sampling positions; one by one where poses have
    gradients.
    """
    changes = (maps[1:] != maps[:-1]).flatten(1).any(1) | maps.requires_grad
    ends = [int(i) + 1 for i in torch.nonzero(changes).flatten()]
    return [slice(a, b) for a, b in zip([0, *ends], [*ends, len(maps)], strict=True)]


def _sample(volumes: Tensor, position: Tensor) -> Tensor:
    """`volumes` (V, X, Y, Z), all at the positions of one map (3, 4)."""
    x, y, z = coordinates((volumes.shape[-3], volumes.shape[-2], volumes.shape[-1]), volumes)
    grid = torch.stack([a * z + b * y + c * x + d for a, b, c, d in position], -1)
    return functional.grid_sample(volumes[None], grid[None], align_corners=True)[0]


def interpolation_weights(
    bvals: Tensor,
    bvecs_voxel: Tensor,
    rows: Tensor,
    rotations: Tensor,
    l_max: int = 8,
    b0_threshold: float = B0_THRESHOLD,
) -> Tensor:
    """(M, N) float64: signal of volumes `rows` (M,) at R^T g from all volumes' signals at g, shell by shell.

    bvals (N,), bvecs_voxel (N, 3), rotations (M, 3, 3) in the same frame.  What harmonics up to `l_max` (less
    where a shell has too few directions) do not explain stays with its volume: S(R^T g) = S(g) + (Y(R^T g) -
    Y(g)) c.  Volumes up to `b0_threshold` (s/mm2) are no shell.
    """
    weights = torch.eye(len(bvals), dtype=torch.float64)[rows]
    seen = (bvecs_voxel[rows].double()[:, None] @ rotations.double())[:, 0]
    for shell in cluster_shells(bvals, b0_threshold):
        inside = torch.isin(rows, shell.indices)
        directions = bvecs_voxel[shell.indices].double()
        order = supported_order(directions, l_max)
        if order < 2 or not inside.any():
            continue
        change = sh_basis(seen[inside], order) - sh_basis(bvecs_voxel[rows[inside]].double(), order)
        index = torch.nonzero(inside).flatten()
        weights[index[:, None], shell.indices[None]] += change @ sh_fit_matrix(directions, order)
    return weights


@on_magnitude
def turn_signal(image: Tensor, *, weights: Tensor) -> Tensor:
    """Signal at turned gradients: sum_u weights[v, u] S_u, at least 0; one volume per row of `weights`.

    image: (N, X, Y, Z), any units.  weights: (M, N), an interpolation on the sphere, built by the caller from
    spherical harmonics; the identity matrix is no change.  A head turned by R sees the gradient g as R^T g.
    """
    if image.ndim != 4:
        raise ValueError(f"image: shape {tuple(image.shape)}, expected (N, X, Y, Z)")
    check_shape("weights", weights, (len(weights), len(image)))
    check_finite("weights", weights)
    with exact_products(image.device):
        turned = weights.to(image) @ image.flatten(1)
    return turned.clamp(min=0).view(-1, *image.shape[1:])


def acquisition_order(n_slices: int, *, multiband: int = 1, interleave: int = 2) -> Tensor:
    """(S,) acquisition time of every slice as a fraction of the volume, 0 first; interleaved: 0, 2, 4, ...,
    1, 3, ...

    >>> acquisition_order(6, interleave=2).mul(6).round().int().tolist()
    [0, 3, 1, 4, 2, 5]
    """
    if multiband < 1 or n_slices % multiband:
        raise ValueError(f"multiband factor {multiband} does not divide the number of slices {n_slices}")
    if interleave < 1:
        raise ValueError(f"interleave is {interleave}, expected at least 1")
    shots = n_slices // multiband
    order = torch.cat([torch.arange(start, shots, interleave) for start in range(min(interleave, shots))])
    times = torch.empty(shots, dtype=torch.float64)
    times[order] = torch.arange(shots, dtype=torch.float64) / shots
    return times.repeat(multiband)


@on_magnitude
def shuffle_slices(image: Tensor, *, moved: Tensor, volumes: Tensor, after: Tensor, axis: int = 2) -> Tensor:
    """Motion within a volume: slices acquired after it come from the moved head, in the order of acquisition.

    image: (N, X, Y, Z), any units.  volumes: (M,) indices of the volumes hit.  moved: (M, X, Y, Z), these
    volumes of the moved head (`turn_signal`, then `move`).  after: (M, S) bool, slices acquired after the
    movement.  axis: slice axis.
    Reference: Andersson et al. 2017, doi:10.1016/j.neuroimage.2017.02.085
    """
    check_axis("axis", axis)
    check_magnitude(moved, "moved")
    volumes = torch.as_tensor(volumes).long().cpu()
    for v in volumes[(volumes < 0) | (volumes >= len(image))].tolist():
        raise ValueError(f"volumes: {v} is outside 0 to {len(image) - 1}")
    check_shape("moved", moved, (len(volumes), *image.shape[-3:]))
    check_shape("after", after, (len(volumes), image.shape[axis - 3]))
    choose = after.to(image.device).view(len(volumes), *(-1 if a == axis else 1 for a in range(3)))
    index = volumes.to(image.device)
    return image.index_copy(0, index, torch.where(choose, moved.to(image), image[index]))


@on_magnitude
def gradient_nonlinearity(
    image: Tensor, *, bvals: Tensor, bvecs_voxel: Tensor, tensor: Tensor, deviation: Tensor
) -> Tensor:
    """Signal under the gradient that coils really make: g(x) = L(x) g, so b(x) = b |L g|^2.

    S exp(-b g^T (L^T D L - D) g): exact for Gaussian diffusion; what the tensor does not explain stays.
    image: (N, X, Y, Z), any units.  bvals (N,) in s/mm2; bvecs_voxel (N, 3).  tensor: (6, X, Y, Z) in mm2/s,
    voxel frame, xx yy zz xy xz yz.  deviation: (X, Y, Z, 3, 3) L, voxel frame; the identity is no change.
    Reference: Bammer et al. 2003, doi:10.1002/mrm.10545
    """
    shape = tuple(image.shape[-3:])
    check_shape("tensor", tensor, (6, *shape))
    check_shape("deviation", deviation, (*shape, 3, 3))
    check_shape("bvals", bvals, (len(image),))
    check_shape("bvecs_voxel", bvecs_voxel, (len(image), 3))
    full = tensor.to(image)[[0, 3, 4, 3, 1, 5, 4, 5, 2]].movedim(0, -1).unflatten(-1, (3, 3))
    coil = deviation.to(image)
    g = bvecs_voxel.to(image)
    squares = torch.stack([g[:, a] * g[:, b] * (1.0 if a == b else 2.0) for a, b in _PAIRS], -1)
    with exact_products(image.device):
        excess = coil.mT @ full @ coil - full
        six = torch.stack([excess[..., a, b] for a, b in _PAIRS])
        change = bvals.to(image)[:, None] * squares

        def deviated(block: Tensor, rows: Tensor) -> Tensor:
            return block * torch.exp(-combine(rows, six))

        return blockwise(deviated, image, change)


_PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
