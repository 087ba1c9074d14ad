"""`FibreDeconvolution`: the fibre orientation density that explains the shells of each voxel and is nowhere negative.

It is also compiled by TorchScript, which knows neither globals nor `zip(strict=...)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.sphere_activation import sphere_grid
from dmri_monai.qspace.shell_response import NOMINAL, legendre_quadrature
from dmri_monai.qspace.shell_set import SMOOTHING
from dmri_monai.so3 import Constants, sh_basis

__all__ = ["FibreDeconvolution"]

L_MAX = 8
GRID_DEGREE = 21
STEPS = 40
MEAN_WEIGHT = 0.05  # of l = 0 beside the other degrees: grey matter and fluid have it too
RIDGE = 1e-3  # beside the penalty on negative values, which is 1


class FibreDeconvolution(nn.Module):
    """Constrained spherical deconvolution of shells of any b-value by the nominal fibre; nothing is learned.

    forward: what `ShellEncoder.parts` gives: harmonics (B, S, n_coef, V) of S/S0 of S shells, rescaled to the nominal
    response (`shell_channels(response="scan")`); b (B, S, V) in ms/µm²; log of the number of measurements (B, S, V);
    presence (B, S, V), 0 or 1 -> (B, 45, V), orthonormal harmonics to l = 8 of the density, in the frame of the input.

    Least squares over all shells, each weighted by its number of measurements, plus a penalty on the negative part of
    the density on a grid, by a fixed number of accelerated gradient steps (Nesterov 1983), preconditioned by degree.
    The octahedral symmetries permute the grid: the layer commutes with them exactly, and closely with every rotation.
    References: Tournier et al. 2007, doi:10.1016/j.neuroimage.2007.02.016; Jeurissen et al. 2014,
    doi:10.1016/j.neuroimage.2014.07.061 (several shells).
    """

    def __init__(self, l_shells: int = 6) -> None:
        super().__init__()
        self.steps, self.mean_weight, self.ridge = STEPS, MEAN_WEIGHT, RIDGE
        self.degrees = l_shells // 2 + 1
        self.intra, self.d_intra = NOMINAL.intra, NOMINAL.d_intra
        self.d_parallel, self.d_perpendicular = NOMINAL.d_parallel, NOMINAL.d_perpendicular
        points, weights = sphere_grid(GRID_DEGREE)
        basis = sh_basis(points, L_MAX)
        squares, polynomials = legendre_quadrature(l_shells)
        degrees = torch.arange(0, l_shells + 1, 2).double()
        shrunk = 1 / (1 + SMOOTHING * (degrees * (degrees + 1)) ** 2)  # by the regularised fit of `shell_set`
        spread = torch.exp(-degrees * (degrees + 1) / 2 * NOMINAL.spread)
        self.grid = Constants(
            synthesis=basis,
            analysis=basis.T * weights,
            squares=squares.unsqueeze(1),
            polynomials=polynomials.T,
            factors=shrunk * spread,
        )
        self.sizes = [2 * degree + 1 for degree in range(0, L_MAX + 1, 2)]

    def forward(self, shells: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        harmonics, b, log_n, presence = shells
        if harmonics.dtype != torch.float64:
            harmonics, b, log_n, presence = harmonics.float(), b.float(), log_n.float(), presence.float()
        if torch.jit.is_scripting():
            return self.density(harmonics, b, log_n, presence)
        else:  # TorchScript does not compile this branch
            with torch.autocast(harmonics.device.type, enabled=False):  # bf16 is too coarse for the steps
                return self.density(harmonics, b, log_n, presence)

    def density(self, harmonics: Tensor, b: Tensor, log_n: Tensor, presence: Tensor) -> Tensor:
        """(B, 45, V) of what `forward` takes."""
        kernel = self.kernel(b)  # (B, S, L, V)
        weighted = kernel * self.shares(log_n, presence).unsqueeze(2)
        of_mean = weighted.new_ones(self.degrees, 1)
        of_mean[0] = self.mean_weight
        square = (weighted * kernel).sum(1) * of_mean  # (B, L, V)
        scale = square[:, 1:2].clamp(min=1e-6)
        weighted = weighted * of_mean / scale.unsqueeze(1)
        targets: list[Tensor] = []
        stiffnesses: list[Tensor] = []
        start = 0
        for i, size in enumerate(self.sizes):
            if i < self.degrees:
                part = harmonics[:, :, start : start + size]
                targets.append((weighted[:, :, i : i + 1] * part).sum(1))
                stiffnesses.append((square[:, i : i + 1] / scale).expand(-1, size, -1))
                start += size
            else:
                targets.append(square.new_zeros(len(square), size, square.shape[2]))
                stiffnesses.append(targets[i])
        target, stiffness = torch.cat(targets, dim=1), torch.cat(stiffnesses, dim=1)
        return self.solved(target, stiffness)

    def shares(self, log_n: Tensor, presence: Tensor) -> Tensor:
        """(B, S, V) of the measurements that each shell has; of log n and presence, each (B, S, V)."""
        amount = presence * log_n.exp()
        return amount / amount.sum(1, keepdim=True).clamp(min=1.0)

    def kernel(self, b: Tensor) -> Tensor:
        """(B, S, L, V) by which the nominal fibre multiplies the harmonics of a density, at b (B, S, V) ms/µm²."""
        b = b.unsqueeze(2)
        x = b * self.grid.squares.to(b)
        difference, across = self.d_parallel - self.d_perpendicular, self.d_perpendicular
        signal = self.intra * torch.exp(-self.d_intra * x)
        signal = signal + (1 - self.intra) * torch.exp(-difference * x - across * b)
        by_degree = self.grid.polynomials * self.grid.factors.unsqueeze(1)
        return torch.matmul(by_degree.to(b), signal)

    def solved(self, target: Tensor, stiffness: Tensor) -> Tensor:
        """(B, 45, V): where the gradient of stiffness · f² / 2 - target · f and of the penalty on f < 0 vanishes."""
        synthesis = self.grid.synthesis.to(target.dtype).expand(len(target), -1, -1)
        analysis = self.grid.analysis.to(target.dtype).expand(len(target), -1, -1)
        step = 1 / (stiffness + 1.0 + self.ridge)
        stiffness, start = stiffness + self.ridge, -target
        density = target / (stiffness + 0.05)
        density[:, 15:] = 0.0  # beyond l = 4 it would be noise
        ahead, momentum = density, 1.0
        for _ in range(self.steps):
            gradient = torch.baddbmm(start, analysis, torch.bmm(synthesis, ahead).clamp(max=0.0))
            new = torch.addcmul(ahead, step, torch.addcmul(gradient, stiffness, ahead), value=-1.0)
            larger = (1 + math.sqrt(1 + 4 * momentum * momentum)) / 2
            ahead = torch.lerp(density, new, 1 + (momentum - 1) / larger)
            density, momentum = new, larger
        return density
