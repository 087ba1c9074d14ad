"""From harmonic channels back to the signal at any gradient table: the inverse of the harmonic fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmri_monai.qspace.harmonics import Measurements, assign_shells, channel_layout
from dmri_monai.qspace.shell_fit import ShellFit, sh_orders
from dmri_monai.so3 import n_coefficients, sh_basis

__all__ = ["channel_groups", "harmonics_to_signal", "measurement_groups"]


def measurement_groups(
    bvals: Tensor, shells: Sequence[float], *, valid: Tensor | None = None, fit: ShellFit | None = None
) -> Tensor:
    """(B, N) group of each measurement of `bvals` (B, N): 0 for b0, s for the s-th of `shells`, -1 for neither.

    valid (B, N) bool: rows that are not padding; padding belongs to no group.  fit: its tolerance and b0 threshold.
    """
    fit = fit or ShellFit()
    rows = torch.ones_like(bvals, dtype=torch.bool) if valid is None else valid.bool()
    groups = []
    for b in range(len(bvals)):
        scan = Measurements(bvals[b], bvals.new_zeros(bvals.shape[1], 3), rows[b], None)
        members = assign_shells(scan, list(shells), fit)
        b0 = ((bvals[b] <= fit.b0_threshold) & rows[b]).cpu()
        groups.append(torch.where(b0, 0, torch.where(members >= 0, members + 1, -1)))
    return torch.stack(groups).to(bvals.device)


def channel_groups(n_shells: int, l_max: int, presence: bool = False) -> Tensor:
    """(C,) group of each harmonic channel: 0 for b0, s for the s-th shell, -1 for presence of a shell.

    >>> channel_groups(2, 2).tolist()
    [0, 1, 2, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]
    """
    shell = torch.arange(1, n_shells + 1).repeat_interleave(n_coefficients(l_max))
    ordered = shell[channel_layout(n_shells, l_max)]
    gap = torch.full((n_shells if presence else 0,), -1)
    return torch.cat([torch.zeros(1, dtype=torch.long), ordered[:n_shells], gap, ordered[n_shells:]])


def harmonics_to_signal(
    harmonics: Tensor,
    bvals: Tensor,
    bvecs_voxel: Tensor,
    *,
    shells: Sequence[float],
    l_max: int = 4,
    valid: Tensor | None = None,
    fit: ShellFit | None = None,
) -> Tensor:
    """(B, N, X, Y, Z) S/S0 at a table, from harmonic channels (B, C, X, Y, Z) as `signal_to_harmonics` orders them.

    bvals (B, N) s/mm², bvecs_voxel (B, N, 3) in the frame of the harmonics; valid (B, N) bool: rows that are not
    padding.  b0 rows are 1; rows of no shell, and padding, are 0 (:func:`measurement_groups` tells which).
    fit: the options of the fit; its `missing` tells whether there are presence channels, its `order_scale` is undone.
    Differentiable in `harmonics`.  Raises ValueError where the channels do not fit shells and order.
    """
    fit = fit or ShellFit()
    presence = fit.missing == "zero"
    channels = channel_groups(len(shells), l_max, presence).to(harmonics.device)
    if harmonics.ndim != 5 or harmonics.shape[1] != len(channels):
        raise ValueError(
            f"harmonics have shape {tuple(harmonics.shape)}, expected (B, {len(channels)}, X, Y, Z) for "
            f"{len(shells)} shells, l_max = {l_max}{' and presence' if presence else ''}"
        )
    groups = measurement_groups(bvals, shells, valid=valid, fit=fit).to(harmonics.device)
    basis = sh_basis(bvecs_voxel.double(), l_max).to(harmonics)
    if fit.order_scale is not None:
        basis = basis / _order_factors(fit.order_scale, l_max).to(basis)
    component = _channel_components(len(shells), l_max, presence).to(harmonics.device)
    of_shell = (groups.unsqueeze(-1) == channels) & (channels > 0)
    matrix = basis[..., component] * of_shell
    signal = torch.einsum("bnc,bcxyz->bnxyz", matrix, harmonics)
    return signal + (groups == 0).to(signal)[..., None, None, None]


def _channel_components(n_shells: int, l_max: int, presence: bool) -> Tensor:
    """(C,) which of the n_coef harmonics a channel is (0 also for b0 and presence)."""
    component = torch.arange(len(sh_orders(l_max))).repeat(n_shells)[channel_layout(n_shells, l_max)]
    gap = torch.zeros(n_shells if presence else 0, dtype=torch.long)
    return torch.cat([torch.zeros(1, dtype=torch.long), component[:n_shells], gap, component[n_shells:]])


def _order_factors(order_scale: Sequence[float], l_max: int) -> Tensor:
    """(n_coef,) factor of every coefficient, from one factor per order."""
    if len(order_scale) != l_max // 2 + 1:
        raise ValueError(
            f"order_scale has {len(order_scale)} factors, expected {l_max // 2 + 1} for l_max = {l_max}"
        )
    return torch.tensor(list(order_scale), dtype=torch.float64)[sh_orders(l_max) // 2]
