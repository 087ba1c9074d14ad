"""Cross entropy with volume fractions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmri_monai.losses.masking import check_shape, inside, plain, weighted_mean

__all__ = ["FractionsLoss"]


class FractionsLoss(nn.Module):
    """Mean over voxels of the divergence sum_k t_k log(t_k / p_k) of predicted fractions p from true ones t.

    pred: (B, n + 1, X, Y, Z) logits of n tissues and of the rest.  target: (B, n, X, Y, Z) volume fractions, whose sum
    lacks the rest to 1.  It is the cross entropy without that of the truth with itself, so that 0 is perfect.  Voxels
    whose target is NaN do not count, nor, with a mask (B, 1, X, Y, Z), those where it is 0.
    Reference: Kullback and Leibler 1951, doi:10.1214/aoms/1177729694
    """

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        target = plain(target)
        check_shape("fractions", target, (len(pred), pred.shape[1] - 1, *pred.shape[2:]))
        valid = target.isfinite().all(dim=1)
        known = torch.nan_to_num(target, nan=0.0).float().clamp(0, 1)
        true = torch.cat([known, (1 - known.sum(dim=1, keepdim=True)).clamp(min=0)], dim=1)
        log_p = functional.log_softmax(plain(pred).float(), dim=1)
        divergence = (torch.xlogy(true, true) - true * log_p).sum(dim=1)
        return weighted_mean(divergence, inside(mask, valid).to(divergence))
