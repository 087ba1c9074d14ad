"""Noise-free signal of a sampled head on a gradient table, and its fibre orientation density.

Isotropic tissues decay with two exponentials.  White matter: sticks and zeppelins dispersed by the heat kernel on the
sphere, degrees 0 to 8 of even harmonics: the addition theorem parts fibres from gradients, one matrix product a scan.
What is left out beyond degree 8 is below 2 % of the signal at b = 3000 s/mm2 for dispersions from 0.012 rad2.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.phantom.head_contrast import HeadContrast
from dmri_monai.phantom.head_sampling import CLASSES, SampledHead
from dmri_monai.phantom.signal import stick_coefficients
from dmri_monai.qspace.shell_fit import sh_orders
from dmri_monai.so3 import sh_basis

__all__ = ["L_MAX", "head_signal", "orientation_density"]

L_MAX = 8
ORDERS = L_MAX // 2 + 1
SPREAD = 0.5  # SD of the log dispersion over the head, by crossings and in space


def orientation_density(head: SampledHead, dispersion: Tensor) -> Tensor:
    """(45, P) even harmonics to degree 8 (world frame, `qspace.basis`) of the fibre orientation density of the P
    voxels.

    Its integral over the sphere is the fraction of white matter; each population is spread by the heat kernel of
    `dispersion` (P,), rad2 per axis: order l shrinks by exp(-l (l + 1) dispersion / 2).
    """
    total = head.directions.new_zeros(len(head.index), len(sh_orders(L_MAX)))
    for fibre in range(head.shares.shape[1]):
        some = torch.nonzero(head.shares[:, fibre] > 0).flatten()
        basis = sh_basis(head.directions[some, fibre], L_MAX)
        total.index_add_(0, some, basis * head.shares[some, fibre, None])
    orders = sh_orders(L_MAX).to(total)
    total *= torch.exp(-orders * (orders + 1) / 2 * dispersion[:, None])
    return (total * head.fractions[0, head.index, None]).T


def head_signal(
    head: SampledHead, contrast: HeadContrast, table: GradientTable, density: Tensor, smooth: Tensor
) -> Tensor:
    """(N, V) noise-free signal.  density (45, P): :func:`orientation_density`.  smooth (3, V): SD-1 maps that vary the
    tissue's signal, its diffusivity and the share of axons.
    """
    b = (table.bvals / 1000).float()
    decay = (1 - contrast.slow_share) * torch.exp(-b[:, None] * contrast.fast)
    decay += contrast.slow_share * torch.exp(-b[:, None] * contrast.slow)  # (N, K)
    amplitude = head.fractions * (contrast.s0[:, None] * torch.exp(contrast.texture[:, None] * smooth[0]))
    grey = CLASSES.index("gm")
    amplitude[grey] *= 1 + (contrast.deep_s0 - 1) * head.deep
    white_s0 = contrast.s0[0] * torch.exp(contrast.texture[0] * smooth[0, head.index])
    change = 0.05 * smooth[1] * (head.fractions[:2].sum(0))
    change += contrast.deep_change * head.deep * head.fractions[grey]
    amplitude[0] = 0.0
    signal = decay @ amplitude
    signal[:, head.index] += _oriented(contrast, b, table.bvecs.float(), head, density, white_s0, smooth[2])
    shells, of_volume = torch.unique(b.round(decimals=1), return_inverse=True)
    factors = torch.exp(-shells[:, None] * change)
    factors *= head.gain
    return signal.mul_(factors[of_volume])


def _oriented(
    contrast: HeadContrast,
    b: Tensor,
    g: Tensor,
    head: SampledHead,
    density: Tensor,
    white_s0: Tensor,
    axons: Tensor,
) -> Tensor:
    """(N, P) of the fibres, and what grey matter has of an orientation, to first order in its anisotropy."""
    basis = sh_basis(torch.where(b[:, None] > 0, g, g.new_tensor([0.0, 0, 1])), L_MAX)
    share = (contrast.intra * torch.exp(0.12 * axons[head.index])).clamp(0.1, 0.9)
    parallel, perpendicular = contrast.d_parallel, contrast.d_perpendicular
    inside = _kernel(b, parallel, 0.0) * basis
    outside = _kernel(b, parallel - perpendicular, perpendicular) * basis
    signal = inside @ (density * (share * white_s0)) + outside @ (density * ((1 - share) * white_s0))
    grey = CLASSES.index("gm")
    iso = (1 - contrast.slow_share[grey]) * torch.exp(-b * contrast.fast[grey])
    amount = -b * contrast.grey_anisotropy * (2 / 3) * iso * contrast.s0[grey]
    second = slice(1, 6)
    normal = sh_basis(head.normals, 2)[:, second].T * (head.fractions[grey, head.index] * (4 * math.pi / 5))
    return signal + (amount[:, None] * basis[:, second]) @ normal


def _kernel(b: Tensor, difference: float, perpendicular: float) -> Tensor:
    """(N, 45): exp(-b (perpendicular + difference cos2)) of a fibre by order, 4 pi / (2 l + 1) a_l."""
    per_volume = b.double().numpy()
    rows = stick_coefficients(per_volume * difference)[:, :ORDERS]
    rows = rows * (4 * np.pi / (4 * np.arange(ORDERS) + 1)) * np.exp(-per_volume * perpendicular)[:, None]
    widths = torch.tensor([4 * k + 1 for k in range(ORDERS)])
    return torch.from_numpy(rows).float().repeat_interleave(widths, dim=1)
