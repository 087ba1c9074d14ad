"""Filters of k-space lines: a gain per line becomes one small matrix along the axis, no Fourier transform of
the image.

Gains are (n,) complex or real vectors in centred order: line j has spatial frequency j - n // 2 cycles per
field of view.  Gains of several effects on one axis multiply (`filter_lines` applies the product in one
pass).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dmri_monai.artifacts.blockwise import blockwise, exact_products, magnitude
from dmri_monai.artifacts.magnitudes import check_axis, check_fraction, check_shape

__all__ = [
    "comb_gain",
    "filter_lines",
    "ghost_gain",
    "line_operator",
    "partial_fourier_gain",
    "t2star_gain",
    "truncation_gain",
]


def ghost_gain(n: int, phase_deg: float) -> Tensor:
    """(n,) gain exp(+-i phase): even and odd lines, read in opposite directions, differ in phase by 2
    `phase_deg`.
    """
    sign = 1.0 - 2.0 * (_frequency(n) % 2)
    return torch.polar(torch.ones(n, dtype=torch.float64), sign * math.radians(phase_deg))


def comb_gain(n: int, period: int, strength: float) -> Tensor:
    """(n,) gain 1 - strength on every `period`-th line counted from the centre of k-space, 1 elsewhere."""
    if isinstance(period, bool) or not isinstance(period, int) or not 2 <= period <= n:
        raise ValueError(f"period is {period!r}, expected a whole number from 2 to {n} lines")
    check_fraction("strength", strength)
    return torch.where(_frequency(n) % period == 0, 1.0 - strength, 1.0).double()


def truncation_gain(n: int, fraction: float) -> Tensor:
    """(n,) gain 0 on the outer `fraction` of the lines, 1 inside: frequencies |k| <= (1 - fraction) n / 2
    stay.
    """
    check_fraction("fraction", fraction)
    return (_frequency(n).abs() <= (1 - fraction) * n / 2 + 1e-9).double()


def partial_fourier_gain(n: int, fraction: float) -> Tensor:
    """(n,) gain 1 on the first `fraction` of the lines (7/8, 6/8, 5/8; above 1/2), 0 on the rest."""
    if not 0.5 < fraction <= 1:
        raise ValueError(f"partial Fourier fraction is {fraction}, expected above 0.5 and up to 1")
    return (torch.arange(n) < max(round(fraction * n), n // 2 + 1)).double()


def t2star_gain(n: int, total_readout_time_s: float, t2star_s: float) -> Tensor:
    """(n,) gain exp(-|t| / T2'), t = k TRT / n: decay before and after the spin echo at the centre of
    k-space.
    """
    if not total_readout_time_s >= 0 or math.isinf(total_readout_time_s):
        raise ValueError(f"total_readout_time_s is {total_readout_time_s}, expected at least 0")
    if not t2star_s > 0:
        raise ValueError(f"t2star_s is {t2star_s}, expected above 0")
    return torch.exp(-_frequency(n).abs() * (total_readout_time_s / n / t2star_s))


def line_operator(gain: Tensor) -> Tensor:
    """(n, n) matrix that multiplies the spectrum of a line by `gain` (n,); real where the gain is Hermitian."""
    n = len(gain)
    ordered = torch.fft.ifftshift(gain.to(torch.complex128))
    kernel = torch.fft.ifft(ordered)
    index = torch.arange(n)
    operator = kernel[(index[:, None] - index[None, :]) % n]
    hermitian = torch.equal(ordered, ordered.conj()[(-index) % n].resolve_conj())
    return operator.real.contiguous() if hermitian else operator


def filter_lines(image: Tensor, gains: Mapping[int, Tensor]) -> Tensor:
    """Magnitude of `image` (..., X, Y, Z) after its k-space lines are multiplied by `gains` {spatial axis:
    (n,)}.
    """
    operators: dict[int, tuple[Tensor, Tensor | None]] = {}
    for axis, gain in gains.items():
        check_axis("axis", axis)
        check_shape(f"gain along axis {axis}", gain, (image.shape[axis - 3],))
        matrix = line_operator(gain)
        parts = (
            (matrix.real.to(image), matrix.imag.to(image))
            if matrix.is_complex()
            else (matrix.to(image), None)
        )
        operators[axis] = parts

    def filtered(block: Tensor) -> Tensor:
        real, imaginary = block, None
        for axis in sorted(
            operators, key=lambda a: operators[a][1] is not None
        ):  # real operators first: cheaper
            real, imaginary = _apply(operators[axis], real, imaginary, axis)
        return magnitude(real, imaginary)

    with exact_products(image.device):
        return blockwise(filtered, image)


def apply_along(matrix: Tensor, image: Tensor, axis: int) -> Tensor:
    """`matrix` (n, n) times every line of `image` (..., X, Y, Z) along spatial `axis`."""
    if axis == 2:
        return image @ matrix.T
    if axis == 1:
        return matrix @ image
    return (matrix @ image.flatten(-2)).reshape(image.shape)


def _apply(
    operator: tuple[Tensor, Tensor | None], real: Tensor, imaginary: Tensor | None, axis: int
) -> tuple[Tensor, Tensor | None]:
    a, b = operator
    out_real = apply_along(a, real, axis)
    out_imaginary = None if b is None else apply_along(b, real, axis)
    if imaginary is not None:
        turned = apply_along(a, imaginary, axis)
        out_imaginary = turned if out_imaginary is None else out_imaginary + turned
        if b is not None:
            out_real = out_real - apply_along(b, imaginary, axis)
    return out_real, out_imaginary


def _frequency(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64) - n // 2
