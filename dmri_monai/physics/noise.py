"""Thermal noise of magnitude images: Rician, and non-central chi of a multi-coil sum of squares."""

from __future__ import annotations

import torch
from torch import Tensor

from dmri_monai.physics.checks import check_non_negative, check_shape, on_magnitude

__all__ = ["noncentral_chi", "rician"]

BLOCK = 1 << 20  # voxels handled together on the CPU: the temporaries stay in cache


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
    such as g(x) sqrt(R) sigma_0 (`g_factor_sigma`).  E[M^2] = S^2 + 2 L sigma^2.
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
    elif scale == 0:
        return image.clone()
    if image.requires_grad or scale.requires_grad:
        return _noisy_block(image, scale, coils, generator, torch.empty_like(image))
    noisy = torch.empty(image.shape, dtype=image.dtype, device=image.device)
    volumes, results = image.reshape(-1, *image.shape[-3:]), noisy.view(-1, *image.shape[-3:])
    step = len(volumes) if image.is_cuda else max(1, BLOCK // volumes[0].numel())
    for start in range(0, len(volumes), step):
        block, result = volumes[start : start + step], results[start : start + step]
        _noisy_block(block, scale, coils, generator, result)
    return noisy


def _noisy_block(
    image: Tensor, sigma: Tensor, coils: int, generator: torch.Generator | None, out: Tensor
) -> Tensor:
    """Noise of one block, written into `out` unless a gradient is asked for."""
    differentiable = image.requires_grad or sigma.requires_grad
    real = torch.empty_like(image, requires_grad=False).normal_(generator=generator)
    power = torch.empty_like(image, requires_grad=False).normal_(generator=generator).square_()
    if coils > 1:
        shape = torch.full_like(power, coils - 1.0)  # chi-square with 2 k degrees of freedom is 2 Gamma(k)
        power += 2 * torch._standard_gamma(shape, generator=generator)
    if differentiable:
        return ((image + sigma * real).square() + sigma.square() * power).sqrt()
    torch.mul(real, sigma, out=out)
    out.add_(image).square_()
    if sigma.ndim:
        return out.add_(power.mul_(sigma.square())).sqrt_()
    return out.add_(power, alpha=float(sigma) ** 2).sqrt_()
