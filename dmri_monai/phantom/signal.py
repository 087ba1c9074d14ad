"""Diffusion-weighted signal of the microstructure on any gradient table, and the receive bias."""

from __future__ import annotations

import numpy as np
import torch
from numpy.polynomial import legendre
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.phantom.fields import Seed, SmoothField, stage_rng
from dmri_monai.phantom.microstructure import Contrast, Microstructure

__all__ = ["dispersed_sticks", "receive_bias", "simulate"]

DEGREES = tuple(range(0, 17, 2))
CHUNK = 20_000


def stick_coefficients(x: np.ndarray) -> np.ndarray:
    """(N,) x = b (d_par - d_perp) -> (N, 9) even Legendre coefficients of exp(-x cos²), degrees 0 to 16.

    a_l = (2l + 1) int_0^1 exp(-x c²) P_l(c) dc, by 32-point Gauss-Legendre quadrature.
    """
    nodes, weights = legendre.leggauss(32)
    c, w = (nodes + 1) / 2, weights / 2
    polynomials = legendre.legvander(c, DEGREES[-1])[:, DEGREES]
    scale = 2 * np.array(DEGREES) + 1
    coefficients: np.ndarray = (np.exp(-np.outer(x, c**2)) * w) @ polynomials * scale
    return coefficients


def even_legendre(c: Tensor) -> Tensor:
    """(...) cosine -> (..., 9) Legendre polynomials of degree 0, 2, ..., 16 by Bonnet's recursion."""
    values = [torch.ones_like(c), c]
    for n in range(1, DEGREES[-1]):
        values.append(((2 * n + 1) * c * values[n] - n * values[n - 1]) / (n + 1))
    return torch.stack(values[::2], dim=-1)


def dispersed_sticks(cosine: Tensor, volumes: Tensor, x: Tensor, dispersion: Tensor) -> Tensor:
    """(K, P, N) = sum over fibres of `volumes` (P, F) times the orientation average of exp(-x cos²).

    cosine (P, F, N): to each fibre's mean direction.  x (K, N) = b d, for K diffusivities at once.
    dispersion (P,): variance per axis in rad², about 1 / (2 kappa) of a Watson distribution.
    Orientations follow the heat kernel on the sphere, so degree l shrinks by exp(-l (l + 1) dispersion / 2).
    The series ends at degree 16: error below 1e-4 for x <= 6, dispersed or not.
    """
    degrees = torch.tensor(DEGREES).to(cosine)
    decay = torch.exp(-degrees * (degrees + 1) / 2 * dispersion.unsqueeze(1))
    moments = torch.einsum("pfnl,pf->pnl", even_legendre(cosine), volumes) * decay.unsqueeze(1)
    coefficients = np.stack([stick_coefficients(row) for row in x.double().cpu().numpy()])
    return torch.einsum("pnl,knl->kpn", moments, torch.from_numpy(coefficients).to(cosine))


def simulate(micro: Microstructure, contrast: Contrast, table: GradientTable) -> Tensor:
    """(P, N) noise-free signal; the unit is that of fully relaxed water at TE = 0."""
    parts = [
        _simulate(micro, contrast, table, slice(i, i + CHUNK)) for i in range(0, len(micro.index), CHUNK)
    ]
    return torch.cat(parts)


def _simulate(micro: Microstructure, contrast: Contrast, table: GradientTable, part: slice) -> Tensor:
    b = (table.bvals / 1000).to(micro.gm)  # ms/um²
    g = table.bvecs.to(micro.gm)
    signal = (
        contrast.s0("gm") * micro.gm[part].unsqueeze(1) * _grey_matter(micro.radial[part], contrast, b, g)
    )
    for tissue, volume, diffusivity in (
        ("csf", micro.csf, contrast.d_csf),
        ("lesion", micro.lesion, contrast.d_lesion),
        ("scalp", micro.scalp, contrast.d_scalp),
    ):
        signal += contrast.s0(tissue) * volume[part].unsqueeze(1) * torch.exp(-b * diffusivity)
    white = torch.nonzero(micro.fibre_volumes[part].sum(dim=1) > 0).flatten()
    fibres = _white_matter(micro, contrast, b, g, white + part.start)
    signal[white] += contrast.s0("wm") * fibres
    return micro.gain[part].unsqueeze(1) * signal * torch.exp(-micro.extra_diffusivity[part].unsqueeze(1) * b)


def _grey_matter(radial: Tensor, contrast: Contrast, b: Tensor, g: Tensor) -> Tensor:
    difference = contrast.gm_anisotropy * contrast.d_gm
    perpendicular = contrast.d_gm - difference / 3
    return torch.exp(-b * (perpendicular + difference * (radial @ g.T) ** 2))


def _white_matter(micro: Microstructure, contrast: Contrast, b: Tensor, g: Tensor, index: Tensor) -> Tensor:
    """(W, N): per population, dispersed sticks inside axons and dispersed zeppelins outside."""
    cosine = micro.fibre_directions[index] @ g.T
    x = torch.stack([b * contrast.d_parallel, b * (contrast.d_parallel - contrast.d_perpendicular)])
    inside, outside = dispersed_sticks(cosine, micro.fibre_volumes[index], x, micro.dispersion[index])
    share = micro.intra[index].unsqueeze(1)
    signal: Tensor = share * inside + (1 - share) * outside * torch.exp(-b * contrast.d_perpendicular)
    return signal


def receive_bias(seed: Seed, points_world: Tensor, strength: float = 0.22) -> Tensor:
    """(P, 3) world mm -> (P,) smooth positive gain, exp of a random field of SD `strength`."""
    field = SmoothField.draw(stage_rng(seed, "bias"), n_waves=6, wavelength_mm=(140.0, 260.0))
    bias: Tensor = torch.exp(strength * field(points_world)[:, 0].clamp(-2, 2))
    return bias
