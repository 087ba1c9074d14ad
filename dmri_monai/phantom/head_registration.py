"""Where a head's points lie in another head: an affine map, then a smooth diffeomorphism (DIPY's SyN).

Reference: Avants et al. 2008, doi:10.1016/j.media.2007.06.004
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

__all__ = ["coordinates_in", "directions_from", "jacobian", "sampled"]

AFFINE_LEVELS = ((1000, 200, 50), (3.0, 1.5, 0.0), (4, 2, 1))  # iterations, smoothing, factors
WARP_ITERATIONS = (20, 15, 6)
WINDOW = 3  # voxels, of the local cross-correlation
FAR_MM = 300.0


def coordinates_in(
    moving: np.ndarray, moving_affine: np.ndarray, static: np.ndarray, static_affine: np.ndarray
) -> np.ndarray:
    """(3, X, Y, Z) world mm in the head of `moving`, for the voxels of `static` (X, Y, Z).

    Both images show brains by similar contrast (any scale), 0 outside; affines (4, 4) in mm.  Points outside the
    brain follow smoothly.
    """
    from dipy.align.imaffine import AffineRegistration, MutualInformationMetric, transform_centers_of_mass
    from dipy.align.imwarp import SymmetricDiffeomorphicRegistration
    from dipy.align.metrics import CCMetric
    from dipy.align.transforms import AffineTransform3D, RigidTransform3D, TranslationTransform3D

    pair = (static, moving)
    grids = {"static_grid2world": static_affine, "moving_grid2world": moving_affine}
    start = transform_centers_of_mass(static, static_affine, moving, moving_affine).affine
    iterations, smoothing, factors = AFFINE_LEVELS
    metric = MutualInformationMetric(nbins=32, sampling_proportion=None)
    search = AffineRegistration(
        metric=metric,
        level_iters=list(iterations),
        sigmas=list(smoothing),
        factors=list(factors),
        verbosity=0,
    )
    for kind in (TranslationTransform3D(), RigidTransform3D(), AffineTransform3D()):
        start = search.optimize(*pair, kind, None, starting_affine=start, **grids).affine
    warp = SymmetricDiffeomorphicRegistration(CCMetric(3, radius=WINDOW), level_iters=list(WARP_ITERATIONS))
    warp.verbosity = 0
    mapping = warp.optimize(*pair, prealign=start, **grids)
    return _mapped_coordinates(mapping)


def _mapped_coordinates(mapping: object) -> np.ndarray:
    """Warp the three coordinates themselves: linear functions, so a grid of two points an axis holds them exactly."""
    axis = np.array([-FAR_MM, FAR_MM], np.float64)
    step = np.diag([2 * FAR_MM] * 3 + [1.0])
    step[:3, 3] = -FAR_MM
    ramps = np.meshgrid(axis, axis, axis, indexing="ij")
    inverse = np.linalg.inv(step)
    return np.stack([mapping.transform(ramp, image_world2grid=inverse) for ramp in ramps])  # type: ignore[attr-defined]


def sampled(volume: np.ndarray, affine: np.ndarray, points_mm: np.ndarray, *, order: int = 1) -> np.ndarray:
    """`volume` (X, Y, Z) of `affine` at world `points_mm` (3, ...): nearest (order 0) or linear; 0 outside."""
    inverse = np.linalg.inv(affine)
    index = np.tensordot(inverse[:3, :3], points_mm, 1) + inverse[:3, 3].reshape(
        3, *[1] * (points_mm.ndim - 1)
    )
    found: np.ndarray = ndimage.map_coordinates(volume, index, order=order, mode="constant", prefilter=False)
    return found


def jacobian(coordinates: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(X, Y, Z, 3, 3) derivative of `coordinates` (3, X, Y, Z) by the world position of the voxels of `affine`."""
    by_voxel = np.stack([np.stack(np.gradient(c), -1) for c in coordinates], -2)
    derivative: np.ndarray = by_voxel @ np.linalg.inv(affine[:3, :3])
    return derivative


def directions_from(there: np.ndarray, derivative: np.ndarray) -> np.ndarray:
    """(..., F, 3) unit directions here of directions `there` (..., F, 3), by the `derivative` (..., 3, 3) of the map
    from here to there: v ~ J^-1 t.  Zero rows stay zero.
    """
    here = np.einsum("...ij,...fj->...fi", np.linalg.inv(derivative), there)
    unit: np.ndarray = here / np.linalg.norm(here, axis=-1, keepdims=True).clip(1e-9)
    return unit
