"""Artifacts of k-space sampling: ghosts, Gibbs ringing, spikes, partial Fourier, T2* blur, aliasing, zipper."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dmri_monai.artifacts.blockwise import blockwise, exact_products, magnitude
from dmri_monai.artifacts.lines import (
    apply_along,
    comb_gain,
    filter_lines,
    ghost_gain,
    line_operator,
    partial_fourier_gain,
    t2star_gain,
    truncation_gain,
)
from dmri_monai.artifacts.magnitudes import (
    check_axis,
    check_finite,
    check_fraction,
    check_non_negative,
    check_shape,
    on_magnitude,
)

__all__ = ["aliasing", "ghost", "gibbs", "line_ghost", "partial_fourier", "spike", "t2star_blur", "zipper"]


@on_magnitude
def ghost(image: Tensor, *, axis: int, phase_deg: float) -> Tensor:
    """Nyquist (N/2) ghost of EPI: |S cos(phi) + i S(y - N/2) sin(phi)|.

    image: (..., X, Y, Z), any units.  axis: phase encoding.  phase_deg: phase error phi of odd and even
    lines; 0 is none, 2-15 usual.
    A point of height 1 keeps |cos phi| and gains |sin phi| half a field of view away.
    Reference: Zaitsev, Maclaren and Herbst 2015, doi:10.1002/jmri.24850
    """
    check_axis("axis", axis)
    check_finite("phase_deg", phase_deg)
    return filter_lines(image, {axis: ghost_gain(image.shape[axis - 3], phase_deg)})


@on_magnitude
def line_ghost(image: Tensor, *, axis: int, period: int, strength: float) -> Tensor:
    """Attenuate every `period`-th phase-encoding line: replicas appear at multiples of FOV / period.

    image: (..., X, Y, Z), any units.  axis: phase encoding.  strength: 0 (none) to 1 (line lost).
    Where period divides the size, a point of height 1 keeps 1 - strength / period and gains strength / period
    at each of the other period - 1 places.
    """
    check_axis("axis", axis)
    return filter_lines(image, {axis: comb_gain(image.shape[axis - 3], period, strength)})


@on_magnitude
def gibbs(image: Tensor, *, axes: tuple[int, ...], fraction: float) -> Tensor:
    """Ringing: the outer `fraction` of k-space along each of `axes` is not sampled.

    image: (..., X, Y, Z), any units.  axes: the two in-plane axes of a slice-selective sequence.  fraction: 0
    (none) to 1. An edge overshoots by 9 % of its height.  Magnitude of the result, as a scanner stores it.
    Reference: Kellner et al. 2016, doi:10.1002/mrm.26054
    """
    for axis in axes:
        check_axis("axes", axis)
    return filter_lines(image, {axis: truncation_gain(image.shape[axis - 3], fraction) for axis in axes})


@on_magnitude
def t2star_blur(image: Tensor, *, axis: int, total_readout_time_s: float, t2star_s: float) -> Tensor:
    """Blur along phase encoding from decay during the readout: lines times exp(-|t| / T2').

    image: (..., X, Y, Z), any units.  axis: phase encoding.  t2star_s: T2' in seconds; infinite is no blur.
    The point spread is a Lorentzian of full width at half maximum TRT / (pi T2') voxels.
    Reference: Farzaneh, Riederer and Pelc 1990, Magn Reson Med 14:123
    """
    check_axis("axis", axis)
    return filter_lines(image, {axis: t2star_gain(image.shape[axis - 3], total_readout_time_s, t2star_s)})


@on_magnitude
def partial_fourier(
    image: Tensor,
    *,
    axis: int,
    fraction: float,
    fill: Literal["zero", "hermitian"] = "zero",
    phase: Tensor | None = None,
) -> Tensor:
    """Only the first `fraction` of the phase-encoding lines is acquired; the rest is zero or mirrored.

    image: (..., X, Y, Z), any units.  axis: phase encoding.  fraction: above 0.5, up to 1 (none).  fill:
    "zero" blurs; "hermitian" takes the conjugate of the opposite line, exact for an image without phase.
    phase: (X, Y, Z) phase of the object in radians; what Hermitian filling gets wrong.
    Reference: McGibney et al. 1993, Magn Reson Med 30:51
    """
    check_axis("axis", axis)
    if fill not in ("zero", "hermitian"):
        raise ValueError(f"fill is {fill!r}, expected 'zero' or 'hermitian'")
    gain = partial_fourier_gain(image.shape[axis - 3], fraction)
    if phase is None:
        return filter_lines(image, {axis: gain}) if fill == "zero" else image.clone()
    check_shape("phase", phase, tuple(image.shape[-3:]))
    operator = line_operator(gain)
    parts = (operator.real.to(image), operator.imag.to(image)) if operator.is_complex() else None
    cosine, sine = phase.to(image).cos(), phase.to(image).sin()

    def sampled(block: Tensor) -> Tensor:
        real, imaginary = block * cosine, block * sine
        if parts is None:
            return magnitude(real, imaginary)
        a, b = parts
        if fill == "hermitian":  # z' = conj(z) + 2 i A Im(z)
            return magnitude(
                real - 2 * apply_along(b, imaginary, axis), 2 * apply_along(a, imaginary, axis) - imaginary
            )
        return magnitude(
            apply_along(a, real, axis) - apply_along(b, imaginary, axis),
            apply_along(a, imaginary, axis) + apply_along(b, real, axis),
        )

    with exact_products(image.device):
        return blockwise(sampled, image)


@on_magnitude
def aliasing(image: Tensor, *, axis: int, fraction: float) -> Tensor:
    """The field of view along phase encoding is too small by `fraction`: what lies outside wraps to the other
    side.

    image: (..., X, Y, Z), any units.  axis: phase encoding.  fraction: 0 (none) to below 1; above 0.5 signal
    wraps more than once.
    The grid stays: the centred window of n - round(fraction n) voxels was acquired, the rest is zero.  The
    wrapped distance is the window's width; the sum of the image is kept.
    """
    check_axis("axis", axis)
    check_fraction("fraction", fraction)
    n = image.shape[axis - 3]
    width = n - round(fraction * n)
    if width < 1:
        raise ValueError(f"fraction is {fraction}: no voxel of {n} is left")
    start = (n - width) // 2
    index = (torch.arange(n, device=image.device) - start) % width + start
    return torch.zeros_like(image).index_add(axis - 3, index, image)


@on_magnitude
def spike(
    image: Tensor,
    *,
    volumes: Tensor,
    slices: Tensor,
    frequency: Tensor,
    amplitude: Tensor | float,
    phase: Tensor | float = 0.0,
    axis: int = 2,
) -> Tensor:
    """Single bad k-space samples: k[frequency] += amplitude max|k| in one slice of one volume: a herringbone
    pattern.

    image: (..., X, Y, Z), any units; leading sizes count as volumes, flattened.  volumes, slices: (M,)
    indices of the events.  frequency: (M, 2) cycles per field of view along the two in-plane axes, ascending.
    amplitude: one number or (M,), at least 0; 0.05-0.1 is strong.  phase: of the sample, radians.  axis:
    slice axis. The largest sample of a magnitude image is its sum, so the pattern is a complex plane wave of
    height amplitude mean(slice): added exactly, without a Fourier transform.
    """
    check_axis("axis", axis)
    check_non_negative("amplitude", amplitude)
    volumes, slices = (torch.as_tensor(t, device=image.device).long() for t in (volumes, slices))
    frequency = torch.as_tensor(frequency, device=image.device)
    check_shape("slices", slices, (len(volumes),))
    check_shape("frequency", frequency, (len(volumes), 2))
    stack = image.reshape(-1, *image.shape[-3:]).movedim(axis + 1, 1)  # (V, S, A, B)
    _check_index("volumes", volumes, stack.shape[0])
    _check_index("slices", slices, stack.shape[1])
    result = stack.clone(memory_format=torch.contiguous_format)
    height = torch.as_tensor(amplitude).to(image).expand(len(volumes))
    offset = torch.as_tensor(phase).to(image).expand(len(volumes))
    pairs, event = torch.unique(volumes * stack.shape[1] + slices, return_inverse=True)
    hit = stack.flatten(0, 1)[pairs]
    real, imaginary = _plane_waves(hit, frequency.to(image), height, offset, event)
    result.flatten(0, 1)[pairs] = magnitude(real, imaginary)
    return result.movedim(1, axis + 1).reshape(image.shape)


def _plane_waves(
    slices: Tensor, frequency: Tensor, amplitude: Tensor, phase: Tensor, event: Tensor
) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of `slices` (U, A, B) plus the wave of every event on its slice `event` (M,)."""
    rows, columns = (
        2 * torch.pi * f[:, None] * torch.arange(n, device=slices.device, dtype=slices.dtype) / n
        for f, n in zip(frequency.T, slices.shape[-2:], strict=True)
    )
    height = amplitude * slices.mean((-2, -1))[event]
    rows = rows + phase[:, None]
    left = torch.stack([rows.cos(), rows.sin()], -1) * height[:, None, None]
    right = torch.stack([columns.cos(), columns.sin()], -2)
    turned = torch.stack([left[..., 1], -left[..., 0]], -1)
    with exact_products(slices.device):
        real = left @ (right * right.new_tensor([[1.0], [-1.0]]))
        imaginary = turned @ (right * right.new_tensor([[1.0], [-1.0]]))
    return slices.index_add(0, event, real), torch.zeros_like(slices).index_add(0, event, imaginary)


def _check_index(name: str, index: Tensor, size: int) -> None:
    for value in index[(index < 0) | (index >= size)].tolist():
        raise ValueError(f"{name}: {value} is outside 0 to {size - 1}")


@on_magnitude
def zipper(
    image: Tensor,
    *,
    readout_axis: int,
    position: int,
    amplitude: float,
    width: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Interference at one frequency: noise in `width` columns at one place along the readout, all along phase
    encoding.

    image: (..., X, Y, Z), any units.  position: first column.  amplitude: standard deviation of the complex
    noise that is added there, in image units; 0 is none.  Our own simple model.
    """
    check_axis("readout_axis", readout_axis)
    check_non_negative("amplitude", amplitude)
    n = image.shape[readout_axis - 3]
    if not (position >= 0 and width >= 1 and position + width <= n):
        raise ValueError(f"position {position} with width {width} is outside 0 to {n - 1}")
    result = image.clone()
    columns = result.narrow(readout_axis - 3, position, width)
    noise = torch.empty((2, *columns.shape), dtype=image.dtype, device=image.device).normal_(
        generator=generator
    )
    columns.copy_(torch.complex(columns + amplitude * noise[0], amplitude * noise[1]).abs())
    return result
