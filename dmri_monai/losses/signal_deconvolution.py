"""Spherical deconvolution as a loss: fibre orientation densities learned from scans without labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.shell_encoder import shell_parts
from dmri_monai.losses.masking import check_shape, inside, plain, weighted_mean
from dmri_monai.networks.fibre_deconvolution import L_MAX, FibreDeconvolution
from dmri_monai.qspace.fibre_density import DISPERSION
from dmri_monai.qspace.shell_fit import sh_orders
from dmri_monai.so3 import even_orders, n_coefficients

__all__ = ["SphericalDeconvolutionLoss", "determined_shares"]

# with these a true density costs less than multiples of it; with less, more crossings are found in real scans, and more
# false ones
NEGATIVE, POWER = 5.0, 0.01


class SphericalDeconvolutionLoss(nn.Module):
    """How badly densities explain the shells that they were predicted from; it needs no labels.

    pred: (B, 45, X, Y, Z) orthonormal even harmonics to l = 8 of the density, in the voxel frame.
    target: (B, C, X, Y, Z) the channels that the network got, of `SphericalHarmonicsd(shells="auto", rescale=True)`
    (layout of :func:`dmri_monai.qspace.shell_set.shell_irreps`, S/S0 rescaled to the nominal fibre), in that frame.
    mask: (B, 1, X, Y, Z), voxels > 0 count; ever only those with signal do, and none with a target that is not finite.

    The mean over voxels of what :class:`FibreDeconvolution` makes small, with its kernel K_l(b); of density f and of
    harmonics c of the shells s, with shares a of the measurements:

        sum_s a_s sum_(l > 0) w_l |c_sl - w_l K_l(b_s) f_l|² / sum_s a_s K_2(b_s)²
            + mean sum_s a_s max(K_0(b_s) f_0 - c_s0, 0)² / sum_s a_s K_2(b_s)²
            + negative ∫ min(f', 0)² + power sum_(l > 0) |f_l|²

    w_l are :func:`determined_shares`: what few directions do not determine, the fit of the shells leaves out, and it
    says nothing against a density; n is the number of measurements, so a direction measured again counts as a new one.
    The denominator brings scans of every b to the scale of the density.  Grey matter and fluid have a mean too, so the
    mean signal bounds the mass of a density from above alone: what it leaves is theirs, and free as long as it is not
    negative.  f' is the density blurred by `DISPERSION` (as
    :func:`density_of_peaks` does): a sharp lobe that ends at l = 8 rings, and that is no fault of it.
    negative, mean, power: weights of these parts; None for that of `FibreDeconvolution`.
    l_max: of the shells.  ValueError for shapes and channels that do not fit.
    References: Elaldi et al. 2021, doi:10.1007/978-3-030-78191-0_21 (deconvolution as the loss of a network); Tournier
    et al. 2007, doi:10.1016/j.neuroimage.2007.02.016 (the penalty on negative values).
    """

    def __init__(
        self,
        l_max: int = 6,
        *,
        negative: float = NEGATIVE,
        mean: float | None = None,
        power: float = POWER,
    ) -> None:
        super().__init__()
        if l_max < 2 or l_max % 2 or l_max > L_MAX:
            raise ValueError(f"l_max of the shells is {l_max}, expected an even number from 2 to {L_MAX}")
        self.l_max, self.deconvolution = l_max, FibreDeconvolution(l_max)
        self.negative, self.power = negative, power
        self.mean = self.deconvolution.mean_weight if mean is None else mean
        if not all(weight >= 0 for weight in (self.negative, self.mean, self.power)):
            raise ValueError(
                f"weights must be at least 0, got negative {negative}, mean {self.mean}, power {power}"
            )

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        target = plain(target)
        check_shape("density", pred, (len(target), n_coefficients(L_MAX), *target.shape[2:]))
        with torch.autocast(pred.device.type, enabled=False):  # bf16 is too coarse for harmonics of l = 6
            density = plain(pred).flatten(2)
            known = target.isfinite().all(dim=1)
            shells = shell_parts(torch.nan_to_num(target, 0.0, 0.0, 0.0).to(density).flatten(2), self.l_max)
            signal = (
                (shells[0][:, :, 0] != 0).any(dim=1).view_as(known)
            )  # `shell_channels` sets S/S0 to 0 in air
            error = self._misfit(density, shells) + self.negative * self._below_zero(density)
            error = error + self.power * density[:, 1:].square().sum(dim=1)
            return weighted_mean(error.view(known.shape), inside(mask, known & signal).to(error))

    def _misfit(self, density: Tensor, shells: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """(B, V) of the signal, relative to what a density of length 1 in degree 2 gives."""
        measured = shells[0]
        # they are the scan's, the same at every voxel; at those that do not count they may be missing
        b, log_n, presence = (values.amax(dim=2, keepdim=True) for values in shells[1:])
        kernel, shares = self.deconvolution.kernel(b), self.deconvolution.shares(log_n, presence)
        determined = determined_shares(log_n.exp(), self.l_max)
        scale = (shares * kernel[:, :, 1].square()).sum(dim=1).clamp(min=1e-6)  # (B, 1)
        degree = sh_orders(self.l_max).to(b.device) // 2
        fit = (determined * kernel).index_select(2, degree)  # (B, S, n_coef, 1)
        excess = fit * density[:, : len(degree)].unsqueeze(1) - measured
        weights = determined.index_select(2, degree)
        anisotropic = (weights[:, :, 1:] * excess[:, :, 1:].square()).sum(dim=2)
        isotropic = excess[:, :, 0].clamp(min=0.0).square()
        return (shares * (anisotropic + self.mean * isotropic)).sum(dim=1) / scale

    def _below_zero(self, density: Tensor) -> Tensor:
        """(B, V): the integral over the sphere of the squared negative part, without the ringing of sharp lobes."""
        grid = self.deconvolution.grid
        orders = sh_orders(L_MAX).to(density)
        blur = torch.exp(-orders * (orders + 1) / 2 * DISPERSION)
        values = torch.matmul(grid.synthesis.to(density) * blur, density).clamp(max=0.0)
        weights = (grid.analysis[0] / grid.synthesis[0, 0]).to(density)  # of the points: Y_00 is a constant
        return torch.einsum("p,bpv->bv", weights, values.square())


def determined_shares(counts: Tensor, l_max: int) -> Tensor:
    """(..., L, V) share of the harmonics of degree 0, 2, ..., l_max that counts (..., V) of directions determine.

    Degrees are filled from below, as the penalty of :func:`dmri_monai.qspace.shell_set.shell_set` makes its fit do: 12
    directions determine degree 2, six of the nine harmonics of degree 4, and none of degree 6.

    >>> determined_shares(torch.tensor([12.0]).double(), 6).flatten().round(decimals=2).tolist()
    [1.0, 1.0, 0.67, 0.0]
    """
    shares = [
        ((counts - n_coefficients(degree - 2)) / (2 * degree + 1)).clamp(0.0, 1.0)
        if degree
        else counts.new_ones(())
        for degree in even_orders(l_max)
    ]
    return torch.stack([share.expand_as(counts) for share in shares], dim=-2)
