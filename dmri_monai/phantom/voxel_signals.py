"""Single voxels drawn without end: tissue, fibres, contrast, protocol and noise, with the truth about each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.phantom.microstructure import find_peaks
from dmri_monai.phantom.protocols import draw_protocol, played_out
from dmri_monai.qspace.harmonics import channel_layout
from dmri_monai.qspace.shell_fit import sh_orders
from dmri_monai.qspace.shell_response import legendre_quadrature, zonal_response
from dmri_monai.qspace.shell_set import shell_channels, shell_set
from dmri_monai.so3 import n_coefficients, sh_basis

__all__ = ["FIBRES", "FRACTIONS", "Batch", "Voxels", "draw_batch", "draw_voxels", "simulate_voxels"]

FRACTIONS = ("wm", "gm", "csf", "other")  # other: air, skull, fat, muscle
FIBRES = 3
BIAS = 0.45  # SD of the log of the receive coils' gain, which no correction precedes: b0 hardly tells grey from white
MISMATCH = 0.15  # largest SD of a voxel's signal from volume to volume, relative
COHERENT = 32  # voxels of a scan that its response is taken from
RESPONSE_ERROR = 0.07  # relative, SD
FAN_SHARE = 0.2  # of the voxels whose second fibre is close to the first, as where fibres fan out or bend
TRUTH_ORDER = 8
SIGNAL_ORDER = 12  # enough for b d <= 8: error of a stick below 1e-3
B_STEP = 20.0  # s/mm², of the simulated b-values: every one of them costs time
TARGET_SPREAD = 0.01  # rad² per axis, added to every fibre of the truth: a sharper lobe than l = 8 would ring

# kinds of tissue in a voxel and how often each occurs; the numbers are shares of WM, GM, CSF, other before mixing
KINDS = (
    (0.32, (1.0, 0.0, 0.0, 0.0)),
    (0.18, (1.0, 1.0, 0.0, 0.0)),
    (0.17, (0.0, 1.0, 0.0, 0.0)),
    (0.10, (0.0, 1.0, 1.0, 0.0)),
    (0.07, (0.0, 0.0, 1.0, 0.0)),
    (0.05, (1.0, 0.0, 1.0, 0.0)),
    (0.05, (1.0, 1.0, 1.0, 0.0)),
    (0.04, (0.0, 0.0, 0.0, 1.0)),
    (0.02, (0.0, 0.0, 1.0, 1.0)),
)


@dataclass(frozen=True)
class Voxels:
    """V voxels; volumes are fractions of the voxel, diffusivities in µm²/ms, dispersions in rad² per axis.

    fractions (V, 4): WM, GM, CSF, other.  shares (V, 3): of the fibres, sum 1.  directions (V, 3, 3): unit.
    lobes (V, 3, 91): harmonics to l = 12 of each direction.  spread (V, 3): dispersion of each fibre beyond
    `base_spread` (V,), that of any coherent bundle.
    intra (V,): share of the fibres inside axons; d_intra, d_parallel, d_perpendicular (V,): white matter.
    grey (V, 4): share of neurites, their diffusivity and dispersion, diffusivity between them; grey_lobe (V, 91): of a
    random direction.  d_csf, d_other (V,).  s0 (V, 4): b0 signal of each compartment, white matter's is about 1.
    """

    fractions: Tensor
    shares: Tensor
    directions: Tensor
    lobes: Tensor
    spread: Tensor
    base_spread: Tensor
    intra: Tensor
    d_intra: Tensor
    d_parallel: Tensor
    d_perpendicular: Tensor
    grey: Tensor
    grey_lobe: Tensor
    d_csf: Tensor
    d_other: Tensor
    s0: Tensor

    def part(self, rows: slice) -> Voxels:
        """Some of the voxels."""
        return Voxels(**{name: tensor[rows] for name, tensor in vars(self).items()})

    def peaks(self) -> tuple[Tensor, Tensor]:
        """Number of fibres (V,) and peaks (V, 3, 3), largest first: the truth, by the rule of the phantom's heads."""
        volumes, order = (self.fractions[:, :1] * self.shares).sort(dim=1, descending=True)
        return find_peaks(volumes, self.directions.gather(1, order.unsqueeze(2).expand(-1, -1, 3)))

    def orientation_density(self) -> Tensor:
        """(V, 45) truth: harmonics to l = 8 of the fibres' density on the sphere, whose mass is WM's fraction."""
        return _density(self, self.spread + TARGET_SPREAD)[:, : n_coefficients(TRUTH_ORDER)]


def draw_voxels(count: int, generator: torch.Generator, scans: int = 1) -> Voxels:
    """`count` voxels, seeded by `generator`; every range is wide around values of adult brains at 1.5 and 3 T.

    White matter's are those of `scans` scans, of as many voxels each.
    """

    def per_scan(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(scans, generator=generator)).repeat_interleave(count // scans)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    shares, directions = _draw_fibres(count, generator)
    spread = 0.12 * torch.rand(count, FIBRES, generator=generator) ** 3
    d_parallel = per_scan(1.0, 2.2)
    ratio = torch.stack([torch.ones(count), uniform(0.95, 2.0), uniform(1.3, 4.5), uniform(0.05, 0.8)], dim=1)
    air = (torch.rand(count, generator=generator) < 0.5).float()
    ratio[:, 3] *= 1 - air * uniform(0.9, 1.0)
    return Voxels(
        fractions=_draw_fractions(count, generator),
        shares=shares,
        directions=directions,
        lobes=sh_basis(directions, SIGNAL_ORDER),
        spread=spread,
        base_spread=per_scan(0.02, 0.14) + uniform(0.0, 0.02),
        intra=per_scan(0.45, 0.85) * uniform(0.8, 1.0),
        d_intra=per_scan(1.4, 2.5) * uniform(0.95, 1.05),
        d_parallel=d_parallel * uniform(0.95, 1.05),
        d_perpendicular=d_parallel * per_scan(0.2, 0.6) * uniform(1.0, 1.2),
        grey=torch.stack(
            [uniform(0.08, 0.42), uniform(1.5, 2.5), uniform(0.2, 0.8), uniform(0.65, 1.4)], dim=1
        ),
        grey_lobe=sh_basis(torch.randn(count, 3, generator=generator), SIGNAL_ORDER),
        d_csf=uniform(2.5, 3.4),
        d_other=1.8 * torch.rand(count, generator=generator) ** 2,  # fat hardly moves, muscle does
        s0=ratio * torch.exp(BIAS * torch.randn(count, 1, generator=generator)),
    )


def _draw_fractions(count: int, generator: torch.Generator) -> Tensor:
    """(V, 4): pure and mixed voxels as KINDS says, most with traces of the other tissues."""
    odds = torch.tensor([odds for odds, _ in KINDS])
    kind = torch.multinomial(odds, count, replacement=True, generator=generator)
    alpha = torch.tensor([shares for _, shares in KINDS])[kind]
    weight = alpha * torch.rand(count, 4, generator=generator).clamp(min=1e-3)
    trace = 0.15 * torch.rand(count, 4, generator=generator) ** 3 * torch.tensor([1.0, 1.0, 1.0, 0.0])
    weight = weight / weight.sum(1, keepdim=True) + trace
    return weight / weight.sum(1, keepdim=True)


def _draw_fibres(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Shares (V, 3) and directions (V, 3, 3) of one, two or three fibres, the second often close to the first."""
    number = torch.multinomial(torch.tensor([0.4, 0.38, 0.22]), count, replacement=True, generator=generator)
    weight = 0.15 + torch.rand(count, FIBRES, generator=generator)
    weight = weight * (torch.arange(FIBRES) <= number.unsqueeze(1))
    directions = _unit(torch.randn(count, FIBRES, 3, generator=generator))
    aside = torch.randn(count, 3, generator=generator) * (
        0.15 + 0.35 * torch.rand(count, 1, generator=generator)
    )
    fans = torch.rand(count, 1, generator=generator) < FAN_SHARE
    directions[:, 1] = torch.where(fans, _unit(directions[:, 0] + aside), directions[:, 1])
    return weight / weight.sum(1, keepdim=True), directions


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)


def _diffused(spread: Tensor, l_max: int) -> Tensor:
    """(..., n_coef) factors exp(-l (l + 1) spread / 2): the heat kernel on the sphere, of `spread` (...) rad²."""
    orders = sh_orders(l_max).to(spread)
    return torch.exp(-orders * (orders + 1) / 2 * spread.unsqueeze(-1))


def stick_harmonics(x: Tensor) -> Tensor:
    """(..., 7) factors by which exp(-x cos²) multiplies the harmonics of degree 0, 2, ..., 12 of a density.

    Funk and Hecke's 2 pi integral over [-1, 1] of exp(-x c²) P_l(c), by Gauss-Legendre quadrature of 20 points.
    """
    squares, polynomials = legendre_quadrature(SIGNAL_ORDER)
    return torch.exp(-x.unsqueeze(-1) * squares.to(x)) @ polynomials.to(x)


def simulate_voxels(voxels: Voxels, bvals: Tensor, bvecs: Tensor) -> Tensor:
    """(V, N) noise-free signals at bvals (N,) s/mm² and bvecs (N, 3), in the frame of the voxels' directions.

    White matter: dispersed sticks inside axons, dispersed zeppelins between them; grey matter: widely dispersed
    sticks and free diffusion; CSF and other: free diffusion.
    """
    b, ring = torch.unique((bvals / 1000).float(), return_inverse=True)
    harmonics = _fibre_harmonics(voxels, b) + _grey_harmonics(voxels, b)  # (V, R, n_coef)
    for tissue, diffusivity in ((2, voxels.d_csf), (3, voxels.d_other)):
        amount = voxels.fractions[:, tissue] * voxels.s0[:, tissue] * math.sqrt(4 * math.pi)
        harmonics[..., 0] += amount.unsqueeze(1) * torch.exp(-diffusivity.unsqueeze(1) * b)
    basis = sh_basis(bvecs.float(), SIGNAL_ORDER)
    signal = harmonics.new_empty(len(harmonics), len(bvals))
    for r in range(len(b)):
        rows = torch.nonzero(ring == r).flatten()
        signal[:, rows] = harmonics[:, r] @ basis[rows].T
    return signal


def _fibre_harmonics(voxels: Voxels, b: Tensor) -> Tensor:
    inside = voxels.intra[:, None, None] * stick_harmonics(voxels.d_intra.unsqueeze(1) * b)
    excess = (voxels.d_parallel - voxels.d_perpendicular).unsqueeze(1) * b
    between = stick_harmonics(excess) * torch.exp(-voxels.d_perpendicular.unsqueeze(1) * b).unsqueeze(2)
    kernel = inside + (1 - voxels.intra[:, None, None]) * between  # (V, R, 7)
    density = voxels.s0[:, :1] * _density(voxels, voxels.spread + voxels.base_spread.unsqueeze(1))
    return kernel[..., sh_orders(SIGNAL_ORDER) // 2] * density.unsqueeze(1)


def _density(voxels: Voxels, spread: Tensor) -> Tensor:
    """(V, 91) harmonics to l = 12 of the fibres' density, each fibre dispersed by `spread` (V, 3)."""
    amount = voxels.fractions[:, :1] * voxels.shares
    return torch.einsum("vf,vfc->vc", amount, voxels.lobes * _diffused(spread, SIGNAL_ORDER))


def _grey_harmonics(voxels: Voxels, b: Tensor) -> Tensor:
    share, d_neurite, spread, d_between = voxels.grey.unbind(1)
    kernel = share[:, None, None] * stick_harmonics(d_neurite.unsqueeze(1) * b)
    density = voxels.grey_lobe * _diffused(spread, SIGNAL_ORDER)
    amount = (voxels.fractions[:, 1] * voxels.s0[:, 1]).unsqueeze(1)
    out = kernel[..., sh_orders(SIGNAL_ORDER) // 2] * (amount * density).unsqueeze(1)
    free = (1 - share).unsqueeze(1) * torch.exp(-d_between.unsqueeze(1) * b) * amount
    out[..., 0] += math.sqrt(4 * math.pi) * free
    return out


@dataclass(frozen=True)
class Batch:
    """channels (C, V) as `ShellEncoder` takes them; density (45, V), fractions (4, V) and voxels: the truth."""

    channels: Tensor
    density: Tensor
    fractions: Tensor
    voxels: Voxels


def draw_batch(
    seed: int,
    protocols: int = 8,
    voxels: int = 128,
    *,
    slots: int = 4,
    l_max: int = 6,
    rescaled: bool = False,
) -> Batch:
    """`protocols` times `voxels` voxels, each group with a protocol, SNR, white matter and reference of its own;
    seeded.  rescaled: to the nominal response, by that of further voxels, coherent ones, of the same white matter."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    each = voxels + COHERENT
    drawn = draw_voxels(protocols * each, generator, protocols)
    coherent = (torch.arange(protocols * each) % each) >= voxels
    drawn.fractions[coherent] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    drawn.shares[coherent] = torch.tensor([1.0, 0.0, 0.0])
    drawn.spread[coherent] = 0.0
    groups = [drawn.part(slice(i * each, (i + 1) * each)) for i in range(protocols)]
    channels = torch.cat(
        [_acquired(group, rng, generator, slots, l_max, rescaled) for group in groups], dim=1
    )
    drawn = Voxels(**{name: tensor[~coherent] for name, tensor in vars(drawn).items()})
    return Batch(channels, drawn.orientation_density().T, drawn.fractions.T, drawn)


def _acquired(
    voxels: Voxels,
    rng: np.random.Generator,
    generator: torch.Generator,
    slots: int,
    l_max: int,
    rescaled: bool,
) -> Tensor:
    """(C, V - COHERENT) channels of `voxels` in one random protocol; the last ones give its response."""
    table = draw_protocol(rng)
    snr = math.exp(rng.uniform(math.log(8.0), math.log(45.0)))
    bvals, bvecs = played_out(table, rng)
    signal = simulate_voxels(voxels, (bvals / B_STEP).round() * B_STEP, bvecs)
    # what motion, eddy currents and pulsation leave in real scans: in proportion to the signal, whatever the SNR
    unsteady = MISMATCH * rng.random() ** 2 * torch.randn(signal.shape, generator=generator)
    signal = noisy(signal * (1 + unsteady), 1 / snr, generator)
    reference = math.exp(0.15 * rng.normal()) * rng.uniform(1.0, 1.25)
    shells = shell_set(table.bvals, table.bvecs, slots=slots, l_max=l_max)
    image = (signal / reference).T[:, :, None, None]
    coherent = image[:, -COHERENT:]
    response: Tensor | None = None
    if rescaled:
        relative = coherent / coherent[table.b0_mask].mean(0)
        layout = channel_layout(slots, l_max)
        fitted = shells.matrix.float().flatten(0, 1)[layout] @ relative.clamp(0, 2).flatten(1)
        response = zonal_response(fitted, slots, voxels.directions[-COHERENT:, 0])
        response = response * torch.exp(RESPONSE_ERROR * torch.randn(response.shape, generator=generator))
    image = image[:, :-COHERENT]
    return shell_channels(image, table.bvals, shells, reference=1.0, response=response).flatten(1)


def noisy(signal: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Rician: the magnitude of `signal` with complex Gaussian noise of SD `sigma` in both parts."""
    real, imaginary = torch.randn(2, *signal.shape, generator=generator).mul_(sigma)
    return torch.hypot(signal + real, imaginary)
