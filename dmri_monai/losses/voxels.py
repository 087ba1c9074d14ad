"""Ordinary voxel losses on dMRI labels: over the voxels that count, and on one-hot labels as published."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmri_monai.losses.masking import check_classes, check_shape, plain, weighted_mean

__all__ = ["CountedVoxelsLoss", "LesionBCELoss", "OneHotL1Loss"]


class CountedVoxelsLoss(nn.Module):
    """Any MONAI loss over the voxels whose label counts; labels below 0 and NaN do not.

    loss: takes (1, C, V) and (1, 1, V), such as `monai.losses.DiceFocalLoss(sigmoid=True)`.
    pred: (B, C, X, Y, Z).  target: (B, 1, X, Y, Z).  The mean over the items with a voxel that counts, 0 without any.
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        check_shape("label", target, (len(pred), 1, *pred.shape[2:]))
        pred, target = plain(pred), plain(target)
        values = []
        for scores, label in zip(pred, target, strict=True):
            counts = label[0] >= 0  # false for NaN as well
            chosen = label[:, counts]
            if chosen.numel():
                values.append(self.loss(scores[:, counts].unsqueeze(0), chosen.unsqueeze(0)))
        return torch.stack(values).mean() if values else 0.0 * pred.sum()


class LesionBCELoss(nn.Module):
    """Binary cross entropy inside the mask, positive voxels weighted: the loss of Müller et al. 2021.

    pred: (B, 1, X, Y, Z) logits.  target: (B, 1, X, Y, Z) of 0 and 1, negative values and NaN do not count.
    pos_weight: weight of a positive voxel; None balances the two classes in every batch (at most 1000 : 1).
    Reference: arXiv:2102.06942
    """

    def __init__(self, pos_weight: float | None = None) -> None:
        super().__init__()
        if pos_weight is not None and not pos_weight > 0:
            raise ValueError(f"pos_weight is {pos_weight}, expected a positive number or None")
        self.pos_weight = pos_weight

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        check_shape("lesion label", target, (len(pred), 1, *pred.shape[2:]))
        check_shape("lesion prediction", pred, tuple(target.shape))
        pred, target = plain(pred), plain(target)
        counts = target >= 0
        labels = torch.where(counts, target, 0.0)
        weight = self._weight(labels, counts)
        loss = F.binary_cross_entropy_with_logits(pred, labels, pos_weight=weight, reduction="none")
        return weighted_mean(loss, counts.to(loss))

    def _weight(self, labels: Tensor, counts: Tensor) -> Tensor:
        if self.pos_weight is not None:
            return labels.new_tensor(self.pos_weight)
        positive = labels.sum()
        balanced = (counts.sum() - positive) / positive.clamp(min=1)
        return torch.where(positive > 0, balanced.clamp(1, 1000), 1.0)


class OneHotL1Loss(nn.Module):
    """Mean absolute difference between the output and the one-hot label: the class loss of Weninger et al. 2022.

    pred: (B, K, X, Y, Z) scores, compared as they are.  target: (B, 1, X, Y, Z) class numbers; negative values and
    NaN do not count.  For labels that do not fit: :func:`dmri_monai.losses.masking.check_classes`.
    Reference: Weninger et al. 2022 (BVM).
    """

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        check_shape("label", target, (len(pred), 1, *pred.shape[2:]))
        pred, target = plain(pred), plain(target)[:, 0]
        counts = target >= 0
        classes, wrong = check_classes("label", torch.where(counts, target, 0.0).long(), pred.shape[1])
        numbers = torch.arange(pred.shape[1], device=pred.device).view(-1, 1, 1, 1)
        one_hot = (classes.unsqueeze(1) == numbers).to(pred)
        return weighted_mean((pred - one_hot).abs().mean(dim=1), counts.to(pred)) + wrong
