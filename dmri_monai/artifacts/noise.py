"""Thermal noise of magnitude images: Rician, and non-central chi of a multi-coil sum of squares."""

from __future__ import annotations

import torch
from torch import Tensor

from dmri_monai.artifacts.blockwise import blockwise
from dmri_monai.artifacts.magnitudes import check_non_negative, check_shape, on_magnitude, unseen

__all__ = ["g_factor_sigma", "noncentral_chi", "rician"]


FEW = 8  # whole shape up to which a gamma number is drawn as a product
FACTORS = 4  # uniform numbers in a product: at least 2^-24 each, it cannot underflow


@on_magnitude
def rician(image: Tensor, *, sigma: Tensor | float, generator: torch.Generator | None = None) -> Tensor:
    """Magnitude of `image` with complex Gaussian noise: sqrt((S + n1)^2 + n2^2), n ~ N(0, sigma^2).

    image: (..., X, Y, Z), any units.  sigma: its units; one number or a map (X, Y, Z).  S0 / sigma is the
    SNR. The signal-free mean is sigma sqrt(pi / 2).
    Reference: Gudbjartsson and Patz 1995, doi:10.1002/mrm.1910340618
    """
    return _noisy(image, sigma, 1, generator)


@on_magnitude
def noncentral_chi(
    image: Tensor, *, sigma: Tensor | float, coils: int, generator: torch.Generator | None = None
) -> Tensor:
    """Root sum of squares over `coils` receivers, each with complex noise: sqrt(sum_l |S_l + n_l|^2).

    image: (..., X, Y, Z), any units.  sigma: noise of one coil, in its units; one number, or a map (X, Y, Z)
    such as g(x) sqrt(R) sigma_0 of a scan accelerated R times.  E[M^2] = S^2 + 2 L sigma^2.
    The distribution depends on the coil images only through sum_l |S_l|^2 = S^2, so the 2 L - 2 noise terms
    orthogonal to the signal are drawn as one chi-square variable: exact, and as cheap for 32 coils as for 2.
    Reference: Aja-Fernandez, Tristan-Vega and Hoge 2011, doi:10.1002/mrm.22701
    """
    if isinstance(coils, bool) or not isinstance(coils, int) or coils < 1:
        raise ValueError(f"coils is {coils!r}, expected a whole number, at least 1")
    return _noisy(image, sigma, coils, generator)


def _noisy(image: Tensor, sigma: Tensor | float, coils: int, generator: torch.Generator | None) -> Tensor:
    check_non_negative("sigma", sigma)
    scale = torch.as_tensor(sigma, dtype=image.dtype, device=image.device)
    if scale.ndim:
        check_shape("sigma", scale, tuple(image.shape[-3:]))
    elif not scale.requires_grad and scale == 0:
        return image.clone()
    return blockwise(lambda block: _noisy_block(block, scale, coils, generator), image)


def _noisy_block(image: Tensor, sigma: Tensor, coils: int, generator: torch.Generator | None) -> Tensor:
    real = torch.empty_like(image, requires_grad=False).normal_(generator=generator)
    power = torch.empty_like(image, requires_grad=False).normal_(generator=generator).square_()
    if coils > 1:  # chi-square with 2 k degrees of freedom is 2 Gamma(k)
        power.add_(_gamma(coils - 1, power, generator), alpha=2)
    if torch.is_grad_enabled() and (image.requires_grad or sigma.requires_grad):
        return ((image + sigma * real).square() + sigma.square() * power).sqrt()
    real.mul_(sigma).add_(image).square_()
    return real.add_(power.mul_(sigma.square())).sqrt_()


def _gamma(shape: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gamma(`shape`) numbers.  Of a small whole shape they are sums of exponential ones, -log of products of
    uniform ones: several times faster on a CPU than rejection.
    """
    if shape > FEW:
        return torch._standard_gamma(torch.full_like(like, float(shape)), generator=generator)
    total = torch.zeros_like(like)
    for start in range(0, shape, FACTORS):
        product = torch.ones_like(like)
        for _ in range(start, min(start + FACTORS, shape)):
            product.mul_(torch.empty_like(like).uniform_(generator=generator).neg_().add_(1))  # in (0, 1]
        total.sub_(product.log_())
    return total


def g_factor_sigma(g_factor: Tensor, *, sigma: float, acceleration: float = 1.0) -> Tensor:
    """(X, Y, Z) noise map g(x) sqrt(R) sigma of a parallel-imaging scan accelerated R times; g_factor at
    least 1.

    Reference: Pruessmann et al. 1999, Magn Reson Med 42:952
    """
    check_non_negative("sigma", sigma)
    if not acceleration >= 1:
        raise ValueError(f"acceleration is {acceleration}, expected at least 1")
    if not unseen(g_factor) and not g_factor.min() >= 1:
        raise ValueError(f"g_factor is {float(g_factor.min()):g}, expected at least 1")
    return g_factor * (acceleration**0.5 * sigma)
