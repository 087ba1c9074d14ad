"""Smooth maps on a grid: polynomials, field maps of air cavities, blobs, a scalp rim, gradient deviations.

Positions are in units of half the field of view: 0 at the centre of the grid, -1 and 1 at the outermost
voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dmri_monai.artifacts.magnitudes import check_fraction, check_non_negative, check_shape

__all__ = [
    "AIR_CAVITIES",
    "blob",
    "coordinates",
    "gradient_deviation",
    "monomials",
    "n_monomials",
    "polynomial_field",
    "scalp_rim",
    "susceptibility_field",
]

Shape = tuple[int, int, int]
# Centre (right, anterior, superior, half fields of view) and radius (mm) of what holds air near the brain:
# frontal and sphenoid sinus, left and right ear.  Rough anatomy, our own choice.
AIR_CAVITIES = (
    ((0.0, 0.70, -0.30), 25.0),
    ((0.0, 0.25, -0.55), 18.0),
    ((-0.65, -0.05, -0.60), 18.0),
    ((0.65, -0.05, -0.60), 18.0),
)


def coordinates(shape: Shape, like: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """x (X, 1, 1), y (1, Y, 1), z (1, 1, Z) positions; dtype and device of `like`, by default float32 on the
    CPU.
    """
    like = torch.empty(0) if like is None else like
    axes = [
        torch.linspace(-1, 1, n, dtype=like.dtype, device=like.device) if n > 1 else like.new_zeros(1)
        for n in shape
    ]
    return axes[0].view(-1, 1, 1), axes[1].view(1, -1, 1), axes[2].view(1, 1, -1)


def n_monomials(order: int) -> int:
    """Number of monomials x^i y^j z^k with i + j + k <= order."""
    return math.comb(order + 3, 3)


def monomials(shape: Shape, order: int, like: Tensor | None = None) -> Tensor:
    """(M, X, Y, Z) monomials: 1; x, y, z; then x^2, xy, xz, y^2, yz, z^2; by total degree up to `order`."""
    x, y, z = coordinates(shape, like)
    powers = [
        (i, j, degree - i - j)
        for degree in range(order + 1)
        for i in range(degree, -1, -1)
        for j in range(degree - i, -1, -1)
    ]
    return torch.stack([x**i * y**j * z**k for i, j, k in powers])


def polynomial_field(
    coefficients: Sequence[float], shape: Shape, order: int, like: Tensor | None = None
) -> Tensor:
    """(X, Y, Z) sum of `monomials` with `coefficients` (M,), M = `n_monomials(order)`."""
    basis = monomials(shape, order, like)
    weights = torch.as_tensor(coefficients, dtype=basis.dtype, device=basis.device)
    check_shape(f"coefficients of order {order}", weights, (len(basis),))
    return torch.tensordot(weights, basis, dims=1)


def susceptibility_field(
    shape: Shape,
    spacing_mm: tuple[float, float, float],
    *,
    peak_hz: float,
    cavities: Sequence[tuple[tuple[float, float, float], float]] = AIR_CAVITIES,
    weights: Sequence[float] | None = None,
    like: Tensor | None = None,
) -> Tensor:
    """(X, Y, Z) off-resonance in Hz around air cavities of a head in a canonical (RAS) grid, B0 along z.

    Each cavity is a sphere of radius a, its dipole field smoothed at the boundary:
    a^3 (2 z^2 - x^2 - y^2) / (r^2 + a^2)^(5/2).  cavities: (centre, radius in mm).  weights: relative
    strength of each, by default 1.  The largest magnitude on the grid is `peak_hz`.
    Reference (field of a sphere): Schenck 1996, Med Phys 23:815
    """
    check_non_negative("peak_hz", peak_hz)
    axes = coordinates(shape, like)
    half_mm = [0.5 * (n - 1) * step for n, step in zip(shape, spacing_mm, strict=True)]
    field = axes[0].new_zeros(shape)
    weights = [1.0] * len(cavities) if weights is None else weights
    for (centre, radius), weight in zip(cavities, weights, strict=True):
        x, y, z = ((axis - c) * half for axis, c, half in zip(axes, centre, half_mm, strict=True))
        across = x**2 + y**2
        field = field + weight * radius**3 * (2 * z**2 - across) / (across + z**2 + radius**2) ** 2.5
    largest = field.abs().amax()
    return field * torch.where(largest > 0, peak_hz / largest, 1.0)


def blob(
    shape: Shape, centre: Sequence[float], width: Sequence[float] | float, like: Tensor | None = None
) -> Tensor:
    """(X, Y, Z) Gaussian of height 1 at `centre` with standard deviation `width`, both in half fields of
    view.
    """
    widths = [width] * 3 if isinstance(width, int | float) else list(width)
    if min(widths) <= 0:
        raise ValueError(f"width is {width}, expected above 0")
    parts = [
        ((axis - c) / w) ** 2 for axis, c, w in zip(coordinates(shape, like), centre, widths, strict=True)
    ]
    return torch.exp(-0.5 * (parts[0] + parts[1] + parts[2]))


def scalp_rim(reference: Tensor, *, threshold: float, thickness: int) -> Tensor:
    """(X, Y, Z) weight, 1 in a rim of `thickness` voxels around where `reference` (X, Y, Z) exceeds
    `threshold`.
    """
    if thickness < 1:
        raise ValueError(f"thickness is {thickness} voxels, expected at least 1")
    inside = (reference > threshold).to(reference.dtype)[None, None]
    outside = inside
    for _ in range(thickness):
        outside = functional.max_pool3d(outside, 3, stride=1, padding=1)
    return (outside - inside)[0, 0]


def gradient_deviation(
    coefficients: Tensor, shape: Shape, *, largest: float, like: Tensor | None = None
) -> Tensor:
    """(X, Y, Z, 3, 3) L(x), what the coils make of a gradient g: L(x) g; the identity at the centre of the
    grid.

    L = 1 + K, every entry of K a polynomial of degree 1 and 2 with `coefficients` (9, 9) (row: entry of K,
    row-major; column: x, y, z, x^2, xy, xz, y^2, yz, z^2), scaled so that its largest entry on the grid is
    `largest`.
    Reference (the voxelwise tensor L): Bammer et al. 2003, doi:10.1002/mrm.10545
    """
    check_shape("coefficients", coefficients, (9, 9))
    check_fraction("largest", largest)
    basis = monomials(shape, 2, like)[1:]
    entries = torch.tensordot(basis, coefficients.to(basis).T, dims=([0], [0]))
    peak = entries.abs().amax()
    scaled = entries * (largest / peak) if peak > 0 else entries
    return scaled.reshape(*shape, 3, 3) + torch.eye(3).to(basis)
