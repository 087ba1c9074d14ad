"""Squared error of fibre orientation densities."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmri_monai.losses.masking import check_shape, inside, plain, weighted_mean

__all__ = ["DensityLoss"]


class DensityLoss(nn.Module):
    """Mean over voxels of the squared error of a function on the sphere, integrated over the sphere.

    pred, target: (B, C, X, Y, Z) orthonormal even harmonics in the same frame; by Parseval's theorem the integral is
    the sum of the coefficients' squared errors.  Voxels whose target is NaN do not count, nor, with a mask
    (B, 1, X, Y, Z), those where it is 0.
    """

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        target = plain(target)
        check_shape("density", pred, tuple(target.shape))
        valid = target.isfinite().all(dim=1)
        error = (plain(pred) - torch.nan_to_num(target, nan=0.0).to(pred)).square().sum(dim=1)
        return weighted_mean(error, inside(mask, valid).to(error))
