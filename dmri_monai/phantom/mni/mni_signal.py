"""The phantom's signal by spherical harmonics: the same model as `phantom.signal.simulate`, several times faster.

A dispersed stick's signal is sum_l a_l(x) e_l P_l(u.g) (see :func:`dispersed_sticks`), and the addition theorem
4 pi / (2 l + 1) sum_m Y_lm(u) Y_lm(g) = P_l(u.g) parts fibres from gradients: per voxel one row of harmonic
coefficients for all gradients, then one matrix product.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.phantom.microstructure import Contrast, Microstructure
from dmri_monai.phantom.signal import DEGREES, stick_coefficients

__all__ = ["even_harmonics", "simulate_by_harmonics"]

CHUNK = 16_384
NEGLIGIBLE = 1e-5  # coefficients below it, dispersion included, are left out


def even_harmonics(u: Tensor, degree: int) -> Tensor:
    """(..., 3) unit vectors -> (..., (degree + 1) (degree + 2) / 2) real harmonics of even degree.

    Normed so that sum_m Y_lm(u) Y_lm(g) = P_l(u.g).  Per m, Q_l = P_l^m / sin^m obeys a three-term recursion in l.
    """
    x, y, z = u.unbind(-1)
    columns: dict[tuple[int, int], Tensor] = {}
    cos, sin, sectoral = torch.ones_like(x), torch.zeros_like(x), 1.0
    for m in range(degree + 1):
        if m:
            cos, sin = x * cos - y * sin, x * sin + y * cos  # Re and Im of (x + i y)^m
            sectoral *= float(np.sqrt((2 * m - 1) / (2 * m)))
        before, here = torch.zeros_like(x), torch.full_like(x, sectoral * (np.sqrt(2) if m else 1.0))
        for order in range(m, degree + 1):
            if order % 2 == 0:
                columns[order, m] = here * cos
                if m:
                    columns[order, -m] = here * sin
            low, high = np.sqrt(order**2 - m**2), np.sqrt((order + 1) ** 2 - m**2)
            before, here = here, ((2 * order + 1) * z * here - low * before) / high
    return torch.stack([columns[k] for k in sorted(columns)], dim=-1)


def simulate_by_harmonics(micro: Microstructure, contrast: Contrast, table: GradientTable) -> Tensor:
    """(N, P) noise-free signal, gradients first; the unit is that of fully relaxed water at TE = 0."""
    b = (table.bvals / 1000).to(micro.gm)  # ms/um2
    g = table.bvecs.to(micro.gm)
    kernels, degree = _kernels(contrast, b, g, micro)
    signal = micro.gm.new_empty(len(table), len(micro.index))
    for start in range(0, len(micro.index), CHUNK):
        part = slice(start, start + CHUNK)
        signal[:, part] = _simulate(micro, contrast, (b, g, kernels, degree), part)
    return signal


def _kernels(
    contrast: Contrast, b: Tensor, g: Tensor, micro: Microstructure
) -> tuple[tuple[Tensor, Tensor], int]:
    """(C, N) of the sticks inside and the zeppelins outside: a_l(b_n) Y_lm(g_n); and the highest degree."""
    per_volume = b.double().cpu().numpy()
    inside = stick_coefficients(per_volume * contrast.d_parallel)
    outside = stick_coefficients(per_volume * (contrast.d_parallel - contrast.d_perpendicular))
    outside *= np.exp(-per_volume * contrast.d_perpendicular)[:, None]
    least = float(micro.dispersion.min()) if len(micro.dispersion) else 0.0
    degrees = np.array(DEGREES)
    size = np.abs(inside).max(axis=0) * np.exp(-degrees * (degrees + 1) / 2 * least)
    n = 1 + int(np.flatnonzero(size > NEGLIGIBLE)[-1])
    width = 2 * degrees[:n] + 1
    harmonics = even_harmonics(g, int(degrees[n - 1])).T
    both = tuple(
        torch.from_numpy(np.repeat(a[:, :n], width, axis=1).T).to(harmonics) * harmonics
        for a in (inside, outside)
    )
    return both, int(degrees[n - 1])  # type: ignore[return-value]


def _simulate(
    micro: Microstructure,
    contrast: Contrast,
    scan: tuple[Tensor, Tensor, tuple[Tensor, Tensor], int],
    part: slice,
) -> Tensor:
    """(N, P) of the voxels in `part`."""
    b, g, kernels, degree = scan
    decay = torch.exp(-b * torch.tensor([contrast.d_csf, contrast.d_lesion, contrast.d_scalp]).to(b)[:, None])
    names = ("csf", "lesion", "scalp")
    weights = torch.stack([contrast.s0(t) * getattr(micro, t)[part] for t in names])
    signal = decay.T @ weights
    grey = torch.nonzero(micro.gm[part] > 0).flatten()
    signal[:, grey] += contrast.s0("gm") * _grey(micro, contrast, b, g, grey + part.start)
    white = torch.nonzero(micro.fibre_volumes[part, 0] > 0).flatten()
    signal[:, white] += contrast.s0("wm") * _white(micro, kernels, degree, white + part.start)
    signal *= micro.gain[part]
    return signal * torch.exp(-b[:, None] * micro.extra_diffusivity[part])


def _grey(micro: Microstructure, contrast: Contrast, b: Tensor, g: Tensor, index: Tensor) -> Tensor:
    difference = contrast.gm_anisotropy * contrast.d_gm
    along = (g @ micro.radial[index].T).square_()
    exponent = along.mul_(difference).add_(contrast.d_gm - difference / 3).mul_(-b[:, None])
    return exponent.exp_().mul_(micro.gm[index])


def _white(micro: Microstructure, kernels: tuple[Tensor, Tensor], degree: int, index: Tensor) -> Tensor:
    """(N, W): every population as dispersed sticks inside axons and dispersed zeppelins outside."""
    volumes = micro.fibre_volumes[index]
    fibres = range(volumes.shape[1])
    parts = [volumes[:, f, None] * even_harmonics(micro.fibre_directions[index, f], degree) for f in fibres]
    odf = torch.stack(parts).sum(dim=0)
    degrees = torch.arange(0, degree + 1, 2).to(volumes)
    decay = torch.exp(-degrees * (degrees + 1) / 2 * micro.dispersion[index].unsqueeze(1))
    odf = odf * decay.repeat_interleave((2 * degrees + 1).long(), dim=1)
    share = micro.intra[index].unsqueeze(1)
    return kernels[0].T @ (odf * share).T + kernels[1].T @ (odf * (1 - share)).T
