"""Geometric distortion along phase encoding: off-resonance moves signal, stretching thins it, compression
piles it up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmri_monai.artifacts.blockwise import blockwise, combine
from dmri_monai.artifacts.magnitudes import (
    check_axis,
    check_finite,
    check_non_negative,
    check_shape,
    on_magnitude,
    unseen,
)
from dmri_monai.artifacts.spatial_fields import monomials, n_monomials

__all__ = ["displace", "eddy", "eddy_modes", "fat_shift", "susceptibility"]

NARROWEST = 0.01  # voxels: width under which a compressed voxel's density is not raised further


@on_magnitude
def susceptibility(
    image: Tensor, *, field_hz: Tensor, axis: int, total_readout_time_s: float, polarity: int = 1
) -> Tensor:
    """Distortion of an EPI image by an inhomogeneous field: signal moves by field TRT voxels, and keeps its
    sum.

    image: (..., X, Y, Z), any units.  field_hz: (X, Y, Z) of the undistorted object, the same for all
    volumes. axis: phase encoding.  polarity: 1 or -1, direction of the blips along the axis; the shift
    changes sign with it. Intensity is divided by the Jacobian 1 + d(shift)/dy, exactly conserving the signal
    of every line inside the grid.
    Reference: Jezzard and Balaban 1995, doi:10.1002/mrm.1910340111
    """
    check_shape("field_hz", field_hz, tuple(image.shape[-3:]))
    check_finite("field_hz", field_hz)
    shift = _signed_time(total_readout_time_s, polarity) * field_hz.to(image)
    return _displace(image, axis, shift, None)


@on_magnitude
def eddy(
    image: Tensor,
    *,
    bvals: Tensor,
    bvecs_voxel: Tensor,
    coefficients_hz: Tensor,
    axis: int,
    total_readout_time_s: float,
    b_reference: float,
    polarity: int = 1,
) -> Tensor:
    """Distortion by eddy currents of the diffusion gradient: a field polynomial in space and linear in b g.

    image: (N, X, Y, Z), any units.  bvals (N,) in s/mm2, bvecs_voxel (N, 3).  coefficients_hz: (M, 3), field
    in Hz of each monomial (M = 4: 1, x, y, z; M = 10: and x^2, xy, xz, y^2, yz, z^2; positions -1 to 1 over
    the grid) per component of (b / b_reference) g.  axis: phase encoding; polarity: 1 or -1.  b0 volumes stay
    as they are.
    Reference: Andersson and Sotiropoulos 2016, doi:10.1016/j.neuroimage.2015.10.019
    """
    modes = eddy_modes(bvals, bvecs_voxel, coefficients_hz, b_reference)
    check_shape("bvals", bvals, tuple(image.shape[:-3]))
    return _displace(image, axis, None, _signed_time(total_readout_time_s, polarity) * modes.to(image))


def eddy_modes(bvals: Tensor, bvecs_voxel: Tensor, coefficients_hz: Tensor, b_reference: float) -> Tensor:
    """(N, M) field in Hz of every monomial in every volume; see `eddy`."""
    if coefficients_hz.ndim != 2 or tuple(coefficients_hz.shape) not in ((4, 3), (10, 3)):
        raise ValueError(
            f"coefficients_hz has shape {tuple(coefficients_hz.shape)}, expected (4, 3) or (10, 3)"
        )
    check_shape("bvecs_voxel", bvecs_voxel, (len(bvals), 3))
    check_finite("coefficients_hz", coefficients_hz)
    if not b_reference > 0:
        raise ValueError(f"b_reference is {b_reference}, expected above 0")
    drive = (bvals / b_reference)[:, None] * bvecs_voxel
    return drive @ coefficients_hz.to(drive).T


@on_magnitude
def displace(image: Tensor, *, axis: int, shift: Tensor | None = None, modes: Tensor | None = None) -> Tensor:
    """`image` (..., X, Y, Z) pushed along spatial `axis` by `shift` (X, Y, Z) + modes (..., M) . monomials,
    in voxels.

    Positive shifts move signal to higher indices.  Every voxel is a bar of uniform density whose ends move
    with the field between the voxel centres: the result is what falls into each output voxel.  A line's sum
    is kept, except for what leaves the grid; folded signal adds up.  Differentiable in the image and in the
    shifts.
    """
    return _displace(image, axis, shift, modes)


@on_magnitude
def fat_shift(image: Tensor, *, fat: Tensor, shift_voxels: float, axis: int) -> Tensor:
    """Unsuppressed fat appears displaced along phase encoding: image + fat(y - shift), wrapped at the field
    of view.

    image: (..., X, Y, Z), any units.  fat: (X, Y, Z), same units; hardly diffuses, so it is equal in all
    volumes. shift_voxels: polarity times 440 Hz (3 T) times total readout time.  axis: phase encoding.
    Reference (chemical shift in EPI): Farzaneh, Riederer and Pelc 1990, Magn Reson Med 14:123
    """
    check_axis("axis", axis)
    check_shape("fat", fat, tuple(image.shape[-3:]))
    check_non_negative("fat", fat)
    check_finite("shift_voxels", shift_voxels)
    whole = math.floor(shift_voxels)
    part = shift_voxels - whole
    moved = (1 - part) * fat.roll(whole, axis - 3) + part * fat.roll(whole + 1, axis - 3)
    return image + moved.to(image)


def _signed_time(total_readout_time_s: float, polarity: int) -> float:
    check_non_negative("total_readout_time_s", total_readout_time_s)
    if polarity not in (1, -1):
        raise ValueError(f"polarity is {polarity!r}, expected 1 or -1")
    return total_readout_time_s * polarity


def _displace(image: Tensor, axis: int, shift: Tensor | None, modes: Tensor | None) -> Tensor:
    check_axis("axis", axis)
    shape = (image.shape[-3], image.shape[-2], image.shape[-1])
    if shift is not None:
        check_shape("shift", shift, shape)
        check_finite("shift", shift)
    if modes is None:
        if shift is None:
            return image.clone()
        edges = _edge_positions(shift.to(image), axis)
        return blockwise(lambda block: _push(block, edges, axis), image)
    order = {n_monomials(o): o for o in (1, 2, 3)}.get(modes.shape[-1])
    if order is None:
        raise ValueError(f"modes has {modes.shape[-1]} columns, expected 4, 10 or 20")
    check_shape("modes", modes, (*image.shape[:-3], modes.shape[-1]))
    basis = monomials(shape, order, image)

    def pushed(block: Tensor, rows: Tensor) -> Tensor:
        field = combine(rows, basis)
        if shift is not None:
            field = field + shift.to(field)
        return _push(block, _edge_positions(field, axis), axis)

    return blockwise(pushed, image, modes.to(image).flatten(0, -2))


def _edge_positions(shift: Tensor, axis: int) -> Tensor:
    """Where the n + 1 ends of the voxels along `axis` go, 0 being the lower end of the grid and n its upper
    end.
    """
    dim, n = axis - 3, shift.shape[axis - 3]
    first, last = shift.narrow(dim, 0, 1), shift.narrow(dim, n - 1, 1)
    between = 0.5 * (shift.narrow(dim, 0, n - 1) + shift.narrow(dim, 1, n - 1))
    index = torch.arange(n + 1, dtype=shift.dtype, device=shift.device)
    at_rest = index.view([-1 if a == axis else 1 for a in range(3)])
    return torch.cat([first, between, last], dim) + at_rest


def _push(image: Tensor, edges: Tensor, axis: int) -> Tensor:
    """What of the bars of `image` (M, X, Y, Z) between the moved `edges` falls into every voxel.

    A bar of density r between p and q is a step up by r at p and down by r at q; the voxel sums of a step at
    p are the running sum of (1 - f) at floor(p) and f one further, f being the fraction of p.
    """
    dim, n = axis - 3, image.shape[axis - 3]
    width = edges.diff(dim=dim)
    widened = width.abs().clamp(min=NARROWEST)
    density = image * (width.sign() / widened)
    none = torch.zeros_like(density.narrow(dim, 0, 1))
    step = density.diff(dim=dim, prepend=none, append=none)
    place = edges.clamp(0, n)
    lower = place.detach().floor()
    beyond = step * (place - lower)
    index = lower.long().expand(step.shape)
    shape = list(step.shape)
    shape[dim] = n + 2
    steps = step.new_zeros(shape).scatter_add(dim, index, step - beyond).scatter_add(dim, index + 1, beyond)
    pushed = steps.narrow(dim, 0, n).cumsum(dim).clamp_(min=0)
    narrow = width.detach().abs() < NARROWEST
    if not unseen(narrow) and not narrow.any():
        return pushed
    return _with_squeezed(pushed, image * (1 - width.abs() / widened), edges, dim)


def _with_squeezed(pushed: Tensor, missing: Tensor, edges: Tensor, dim: int) -> Tensor:
    """`pushed` and what bars narrower than NARROWEST still lack, put into the voxel around their middle."""
    n = pushed.shape[dim]
    middle = 0.5 * (edges.narrow(dim, 0, n) + edges.narrow(dim, 1, n)).detach()
    inside = (middle >= 0) & (middle < n)
    index = middle.clamp(0, n - 1).long().expand(missing.shape)
    return pushed.scatter_add(dim, index, missing * inside)
