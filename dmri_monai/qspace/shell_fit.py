"""Even real spherical harmonics fitted to one shell, with regularisation; the basis is `dmri_monai.so3.sh_basis`.

One convention throughout: e3nn's real orthonormal harmonics (`normalization="integral"`, polar axis y), even
orders 0, 2, ..., l_max, the 2l+1 components of an order in e3nn's order.  Converters to other packages' bases
live in :mod:`dmri_monai.qspace.conventions`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD
from dmri_monai.so3 import even_orders, n_coefficients, sh_basis

__all__ = [
    "ALWAYS_NEAR",
    "ShellFit",
    "harmonic_irreps",
    "sh_fit_matrix",
    "sh_orders",
    "supported_order",
]

ALWAYS_NEAR = 50.0  # s/mm²
SMOOTHING = 1e-4
RANK_TOLERANCE = 1e-2


@dataclass(frozen=True)
class ShellFit:
    """How the shells of a scan become harmonics.

    tolerance: a measurement belongs to the nearest shell within this fraction of its b-value, or `ALWAYS_NEAR`.
    missing: "zero" fills an absent shell with zeros and adds one presence channel per shell; "error" refuses it.
    too_few: "zero" lowers the order of a shell with too few directions and zeroes the rest; "error" refuses.
    smoothing: Laplace-Beltrami weight lambda; with well-spread directions order l is damped by
        1 / (1 + lambda l²(l+1)²), whatever the number of directions (Descoteaux 2007, doi:10.1002/mrm.21277).
    clip: S/S0 is clipped to [0, clip] before the fit, which bounds voxels with hardly any b0 signal; or None.
    min_b0: S/S0 is 0 where the mean b0 is at most this fraction of its median: in air it is noise divided by noise.
    b0_threshold: volumes with b <= this (s/mm²) are b0.
    order_scale: factor of the coefficients of each order 0, 2, ...; None for 1, the orthonormal basis.  The higher
        orders are much smaller than the first: factors that bring them to its size let networks learn from them.
        One factor per order keeps equivariance.
    """

    tolerance: float = 0.1
    missing: str = "error"
    too_few: str = "error"
    smoothing: float = SMOOTHING
    clip: float | None = 2.0
    min_b0: float = 0.1
    b0_threshold: float = B0_THRESHOLD
    order_scale: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("missing", "too_few"):
            if getattr(self, name) not in ("error", "zero"):
                raise ValueError(f"{name} must be 'error' or 'zero', got {getattr(self, name)!r}")
        if not 0 < self.min_b0 < 1:
            raise ValueError(f"min_b0 is {self.min_b0}, expected a fraction between 0 and 1")
        if not (self.tolerance > 0 and self.smoothing >= 0):
            raise ValueError(f"tolerance {self.tolerance} must be > 0 and smoothing {self.smoothing} >= 0")
        if self.order_scale is not None and not all(factor > 0 for factor in self.order_scale):
            raise ValueError(f"order_scale must be positive factors, got {list(self.order_scale)}")


def sh_orders(l_max: int) -> Tensor:
    """(n_coef,) order l of every coefficient."""
    orders = torch.tensor(list(even_orders(l_max)))
    return orders.repeat_interleave(2 * orders + 1)


def harmonic_irreps(n_shells: int, l_max: int, presence: bool = False) -> str:
    """Irreps of the channels: b0, the shells' l = 0 (and presence), then the shells' l = 2, l = 4, ...

    >>> harmonic_irreps(2, 4)
    '3x0e+2x2e+2x4e'
    """
    scalars = 1 + n_shells * (2 if presence else 1)
    return "+".join([f"{scalars}x0e", *(f"{n_shells}x{order}e" for order in even_orders(l_max) if order)])


def sh_fit_matrix(
    directions: Tensor, l_max: int, weights: Tensor | None = None, smoothing: float = SMOOTHING
) -> Tensor:
    """(n_coef, N) float64 matrix M, coefficients = M @ signal, for `directions` (N, 3) and `weights` (N,).

    M = (B^T W B + lambda L)^-1 B^T W with sum of W = 4 pi and L = diag(l²(l+1)²): the damping of an order
    does not depend on the number of directions.  ValueError where they cannot tell the harmonics apart.
    """
    directions = directions.double()
    weights = torch.ones_like(directions[:, 0]) if weights is None else weights.to(directions)
    if not (weights.isfinite().all() and (weights >= 0).all() and weights.sum() > 0):
        raise ValueError("weights of the measurements must be finite, at least 0, and not all 0")
    basis, weights = sh_basis(directions, l_max), weights * (4 * math.pi / weights.sum())
    _check_determined(directions[weights > 0], l_max)
    orders = sh_orders(l_max).to(directions)
    weighted = basis.T * weights
    normal = weighted @ basis + smoothing * torch.diag((orders * (orders + 1)) ** 2)
    return torch.linalg.solve(normal, weighted)


def supported_order(directions: Tensor, l_max: int) -> int:
    """Greatest even order <= l_max whose harmonics `directions` (N, 3) can tell apart; -1 for none."""
    # from the top: leaving columns out never lowers the ratio of extreme singular values
    for order in reversed(even_orders(l_max)):
        if _is_determined(directions.double(), order):
            return order
    return -1


def _is_determined(directions: Tensor, l_max: int) -> bool:
    if len(directions) < n_coefficients(l_max):
        return False
    singular = torch.linalg.svdvals(sh_basis(directions, l_max))
    return bool(singular[-1] > RANK_TOLERANCE * singular[0])


def _check_determined(directions: Tensor, l_max: int) -> None:
    if not _is_determined(directions, l_max):
        needed = n_coefficients(l_max)
        raise ValueError(
            f"{len(directions)} directions cannot determine harmonics up to order {l_max}: "
            f"at least {needed} different (not antipodal), well-spread directions are needed"
        )
