"""Multiplicative changes of the signal: drift, bias field, slice dropout, venetian blind, table vibration."""

from __future__ import annotations

import torch
from torch import Tensor

from dmri_monai.artifacts.magnitudes import (
    check_axis,
    check_finite,
    check_fraction,
    check_shape,
    on_magnitude,
    per_volume,
)

__all__ = [
    "bias_field",
    "drift",
    "multiband_set",
    "slice_dropout",
    "slice_gain",
    "venetian_blind",
    "vibration",
]


@on_magnitude
def drift(image: Tensor, *, fraction: float, order: int = 2, position: Tensor | None = None) -> Tensor:
    """Slow loss of signal over the scan: S_i (1 - fraction t_i^order), t = 0 at the first volume, 1 at the
    last.

    image: (N, X, Y, Z) in acquisition order, any units.  fraction: signal lost at the end, 0 to 1 (1-6 % is
    usual). order: 1 linear, 2 quadratic.  position: (N,) acquisition times t in [0, 1], where volumes are
    missing.
    Reference: Vos et al. 2017, doi:10.1002/mrm.26124
    """
    check_fraction("fraction", fraction)
    if order not in (1, 2):
        raise ValueError(f"order is {order!r}, expected 1 (linear) or 2 (quadratic)")
    if image.ndim != 4:
        raise ValueError(f"image: shape {tuple(image.shape)}, expected (N, X, Y, Z)")
    if position is None:
        position = torch.linspace(0, 1, len(image)) if len(image) > 1 else torch.zeros(1)
    check_fraction("position", position)
    return image * (1 - fraction * per_volume("position", position, image) ** order)


@on_magnitude
def bias_field(image: Tensor, *, log_gain: Tensor) -> Tensor:
    """One receive sensitivity for all volumes: S exp(log_gain).

    image: (..., X, Y, Z), any units.  log_gain: (X, Y, Z), smooth, such as `fields.polynomial_field`; 0 is no
    bias. The field cancels in S / S0: it matters through the noise that is added after it.
    """
    check_shape("log_gain", log_gain, tuple(image.shape[-3:]))
    check_finite("log_gain", log_gain)
    return image * log_gain.to(image).exp()


def multiband_set(slice_index: int, factor: int, n_slices: int) -> list[int]:
    """Slices excited together with `slice_index` (itself included): n_slices / factor apart.

    >>> multiband_set(7, 3, 30)
    [7, 17, 27]
    """
    if factor < 1 or n_slices % factor:
        raise ValueError(f"multiband factor {factor} does not divide the number of slices {n_slices}")
    if not 0 <= slice_index < n_slices:
        raise ValueError(f"slice {slice_index} is outside 0 to {n_slices - 1}")
    step = n_slices // factor
    return [slice_index % step + i * step for i in range(factor)]


def slice_gain(image: Tensor, gain: Tensor, axis: int) -> Tensor:
    """`image` (..., X, Y, Z) times `gain` (..., S) or (S,), one factor per slice along spatial `axis`."""
    check_axis("axis", axis)
    shape = [1, 1, 1]
    shape[axis] = -1
    return image * gain.to(image).reshape(*gain.shape[:-1], *shape)


@on_magnitude
def slice_dropout(
    image: Tensor,
    *,
    volumes: Tensor,
    slices: Tensor,
    loss: Tensor | float,
    axis: int = 2,
    multiband: int = 1,
) -> Tensor:
    """Signal lost in single slices (or whole multiband sets), as by a movement while the gradients are on.

    image: (..., X, Y, Z), any units; leading sizes count as volumes, flattened.  volumes, slices: (M,)
    indices of the events.  loss: one number or (M,), 0 (none) to 1 (slice lost).  axis: slice axis.
    multiband: slices excited together; an event hits all of them.  Of two events on one slice the stronger
    counts.
    Reference: Andersson et al. 2016, doi:10.1016/j.neuroimage.2016.06.058
    """
    check_axis("axis", axis)
    check_fraction("loss", loss)
    gain = _dropout_gain(image, volumes, slices, torch.as_tensor(loss), axis, multiband)
    return slice_gain(image, gain, axis)


def _dropout_gain(
    image: Tensor, volumes: Tensor, slices: Tensor, loss: Tensor, axis: int, multiband: int
) -> Tensor:
    n_volumes, n_slices = image.shape[:-3].numel(), image.shape[axis - 3]
    volumes, slices = torch.as_tensor(volumes).long().cpu(), torch.as_tensor(slices).long().cpu()
    check_shape("slices", slices, (len(volumes),))
    for v in volumes[(volumes < 0) | (volumes >= n_volumes)].tolist():
        raise ValueError(f"volumes: {v} is outside 0 to {n_volumes - 1}")
    gain = torch.ones(n_volumes, n_slices, dtype=torch.float64)
    kept = 1 - loss.detach().double().cpu().expand(len(volumes))
    sets = [multiband_set(s, multiband, n_slices) for s in slices.tolist()]
    for v, together, keep in zip(volumes.tolist(), sets, kept.tolist(), strict=True):
        gain[v, together] = gain[v, together].clamp(max=keep)
    return gain.reshape(*image.shape[:-3], n_slices)


@on_magnitude
def venetian_blind(image: Tensor, *, strength: float, axis: int = 2) -> Tensor:
    """Interleaved slices differ in gain: even ones times 1 + strength, odd ones times 1 - strength.

    image: (..., X, Y, Z), any units.  strength: 0 (none) to 1.  axis: slice axis.
    Our own simple model of the spin-history effect of interleaved acquisition.
    """
    check_fraction("strength", strength)
    check_axis("axis", axis)
    gain = torch.full((image.shape[axis - 3],), 1.0 + strength, dtype=torch.float64)
    gain[1::2] = 1.0 - strength
    return slice_gain(image, gain, axis)


@on_magnitude
def vibration(image: Tensor, *, left_right: Tensor, weight: Tensor, remaining: float) -> Tensor:
    """Focal signal loss where the table shakes, in volumes with a strong left-right gradient.

    S_i(x) (1 - (1 - remaining) left_right_i^2 weight(x)).
    image: (..., X, Y, Z), any units.  left_right: (...) share of the gradient along left-right, -1 to 1; 0
    for b0. weight: (X, Y, Z) in [0, 1], where the loss sits.  remaining: signal left at its centre, 0 to 1
    (1: no loss).
    Reference (the effect; the model is ours): Gallichan et al. 2010, doi:10.1002/hbm.20856
    """
    check_fraction("remaining", remaining)
    check_fraction("weight", weight)
    check_shape("weight", weight, tuple(image.shape[-3:]))
    share = per_volume("left_right", left_right, image).square()
    check_fraction("left_right^2", share)
    return image * (1 - (1 - remaining) * share * weight.to(image))
