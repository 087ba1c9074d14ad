"""What one coherent bundle looks like in a scan, and shells rescaled as if it looked the same in every scan.

Deconvolution resolves crossings because it knows the response of a single fibre, which it takes from the scan at hand
(Tournier et al. 2007, doi:10.1016/j.neuroimage.2007.02.016).  A voxel on its own cannot know it: two crossing fibres
and one dispersed one look alike.  Scaling the degrees of the harmonics so that this response becomes that of a nominal
fibre is linear and rotation equivariant, as in the harmonisation of scanners (Mirzaalian et al. 2016,
doi:10.1016/j.neuroimage.2016.04.041).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from numpy.polynomial import legendre
from torch import Tensor
from torch.nn import functional

from dmri_monai.so3 import sh_basis

__all__ = [
    "NOMINAL",
    "Fibre",
    "bundle_response",
    "legendre_quadrature",
    "main_axes",
    "nominal_response",
    "response_factors",
    "zonal_response",
]

LEAST_VOXELS, SHARE = 30, 0.01  # of the head, taken for coherent bundles
LEAST_B0 = 0.3  # of its median: no air
NOISE = 0.02  # of a response: keeps the factors of degrees bounded that have hardly any
LEAST, MOST = 0.4, 2.5  # factors


@dataclass(frozen=True)
class Fibre:
    """A coherent bundle: share inside axons; diffusivities in µm²/ms inside, along and across outside; dispersion in
    rad² per axis."""

    intra: float
    d_intra: float
    d_parallel: float
    d_perpendicular: float
    spread: float


# near the responses of real scans, so that most factors are near 1
NOMINAL = Fibre(intra=0.55, d_intra=1.9, d_parallel=1.4, d_perpendicular=0.65, spread=0.11)


def nominal_response(bvals: Tensor, l_max: int) -> Tensor:
    """(slots, L) zonal coefficients (order m = 0, along the fibre) of l = 0, 2, ... of S/S0 of the nominal fibre at
    bvals (slots,) s/mm²."""
    fibre, b = NOMINAL, bvals.double().cpu().unsqueeze(1) / 1000
    degrees = torch.arange(0, l_max + 1, 2).double()
    squares, polynomials = legendre_quadrature(l_max)
    inside = torch.exp(-b * fibre.d_intra * squares)
    across, along = fibre.d_perpendicular, fibre.d_parallel
    between = torch.exp(-b * (across + (along - across) * squares))
    spread = torch.exp(-degrees * (degrees + 1) / 2 * fibre.spread)
    zonal = (fibre.intra * inside + (1 - fibre.intra) * between) @ polynomials
    return zonal * spread * ((2 * degrees + 1) / (4 * math.pi)).sqrt()


@cache
def legendre_quadrature(l_max: int) -> tuple[Tensor, Tensor]:
    """(20,) squared nodes on [0, 1] and (20, L) weighted polynomials of degree 0, 2, ...: times the values of an even
    function at the nodes, 2 pi times its integral with them over [-1, 1] (Gauss-Legendre).  Treat as read-only."""
    nodes, weights = legendre.leggauss(20)
    c, w = (nodes + 1) / 2, weights / 2
    polynomials = legendre.legvander(c, l_max)[:, ::2] * w[:, None] * 4 * math.pi
    return torch.from_numpy(c**2), torch.from_numpy(polynomials)


def zonal_response(fitted: Tensor, slots: int, axes: Tensor) -> Tensor:
    """(slots, L) mean zonal coefficients along axes (V, 3) of the shells of V voxels.

    fitted (slots n_coef, V): harmonics by degree, then slot, as :func:`dmri_monai.qspace.shell_set.shell_channels` has
    them.
    """
    l_max = _l_max(fitted, slots)
    basis = sh_basis(axes.to(fitted.dtype), l_max).T  # (n_coef, V)
    found, start = [], 0
    for degree in range(0, l_max + 1, 2):
        size, first = 2 * degree + 1, degree * (degree - 1) // 2
        part = fitted[start : start + slots * size].unflatten(0, (slots, size))
        start += slots * size
        zonal = (part * basis[first : first + size]).sum(1).mean(1)
        found.append(zonal * math.sqrt(4 * math.pi / size))
    return torch.stack(found, dim=1)


def _l_max(fitted: Tensor, slots: int) -> int:
    return (math.isqrt(8 * (len(fitted) // slots) + 1) - 3) // 2


def bundle_response(fitted: Tensor, present: Tensor, b0: Tensor) -> Tensor:
    """(slots, L) mean zonal coefficients of the most coherent voxels of a scan.

    fitted (slots n_coef, X Y Z): harmonics of S/S0 to l_max of at least 2, by degree, then slot; present (slots,) bool;
    b0 (X, Y, Z): over its median.  A voxel is coherent where the anisotropy of its surroundings adds up: neither noise
    nor the edge of the head does.
    """
    slots = len(present)
    there = torch.nonzero(present).flatten().tolist()
    inside = b0 > LEAST_B0
    for slot in there:
        inside = inside & (fitted[slot].view_as(b0) > 0)
    second = sum(fitted[slots + 5 * slot : slots + 5 * slot + 5] for slot in there)
    second = (torch.as_tensor(second) * inside.flatten()).unflatten(1, b0.shape)
    near = functional.avg_pool3d(functional.pad(second, [1] * 6)[None], 3, 1)[0].flatten(1)
    score = near.square().sum(0) * inside.flatten()
    count = min(max(LEAST_VOXELS, int(SHARE * int(inside.sum()))), len(score))
    best = score.topk(count).indices
    return zonal_response(fitted[:, best], slots, main_axes(near[:, best]))


def main_axes(second: Tensor) -> Tensor:
    """(V, 3) where functions of degree 2, (5, V), are least, as a signal is along its fibre."""
    forms = _quadratic_forms().to(second)
    found: Tensor = torch.linalg.eigh(torch.einsum("cv,cij->vij", second, forms)).eigenvectors[..., 0]
    return found


@cache
def _quadratic_forms() -> Tensor:
    """(5, 3, 3): the harmonics of degree 2 are Y(g) = g' M g."""
    unit = torch.eye(3, dtype=torch.float64)
    sums = (unit[:, None] + unit[None]).flatten(0, 1)
    values = (sh_basis(functional.normalize(sums, dim=1), 2)[:, 1:].T * sums.square().sum(1)).unflatten(
        1, (3, 3)
    )
    own = torch.diagonal(values, dim1=1, dim2=2) / 4
    return (values - own[:, :, None] - own[:, None, :]) / 2


def response_factors(response: Tensor, bvals: Tensor) -> Tensor:
    """(slots, L) by which the degrees of a scan's shells, b-values bvals (slots,) s/mm², are multiplied: from the
    scan's `response` (slots, L) to the nominal one, at least LEAST and at most MOST; 1 for l = 0.

    Of a scan without coherent white matter the response is noise, and so are the factors, between these bounds.
    """
    nominal = nominal_response(bvals, 2 * response.shape[1] - 2).to(response)
    factors = ((nominal * response + NOISE**2) / (response.square() + NOISE**2)).clamp(LEAST, MOST)
    factors[:, 0] = 1.0
    return factors
