"""Loss of the number of fibres, a class with an order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmri_monai.losses.masking import check_classes, check_shape, inside, plain, weighted_mean

__all__ = ["CrossingsLoss"]


class CrossingsLoss(nn.Module):
    """Cross entropy + `ordinal` x ranked probability score of ordered classes 0, 1, ..., K - 1.

    pred: (B, K, X, Y, Z) logits.  target: (B, 1, X, Y, Z) class numbers; `ignore_index` and NaN do not count.
    mask: (B, 1, X, Y, Z), voxels > 0 count.  The ranked probability score, the sum over k < K - 1 of
    (P(class <= k) - [target <= k])², is a proper score that, unlike cross entropy, counts an error of two fibres more
    than an error of one.  class_weights: one number per class; the mean is then a weighted one.
    Reference: Epstein 1969, doi:10.1175/1520-0450(1969)008<0985:ASSFPF>2.0.CO;2
    ValueError for shapes that do not fit; labels: :func:`dmri_monai.losses.masking.check_classes`; 0 where no voxel
    counts.
    """

    def __init__(
        self, ordinal: float = 0.0, class_weights: Sequence[float] | None = None, ignore_index: int = -1
    ) -> None:
        super().__init__()
        if ordinal < 0:
            raise ValueError(f"ordinal is {ordinal}, expected a weight of at least 0")
        self.ordinal = ordinal
        self.ignore_index = ignore_index
        self.class_weights = list(class_weights) if class_weights is not None else None

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        check_shape("crossings target", target, (len(pred), 1, *pred.shape[2:]))
        logits = plain(pred)
        classes = target.as_subclass(Tensor)[:, 0]
        valid = inside(mask, ~(classes.isnan() | (classes == self.ignore_index)))
        ignored = f" (or {self.ignore_index}, which is ignored)"
        classes = torch.where(valid, classes, 0).long()
        classes, wrong = check_classes("crossings target", classes, logits.shape[1], ignored)
        loss = F.cross_entropy(logits, classes, reduction="none")
        if self.ordinal:
            loss = loss + self.ordinal * ranked_probability_score(logits, classes)
        return weighted_mean(loss, self._weights(classes, logits) * valid) + wrong

    def _weights(self, classes: Tensor, logits: Tensor) -> Tensor:
        if self.class_weights is None:
            return torch.ones_like(logits[:, 0])
        if len(self.class_weights) != logits.shape[1]:
            raise ValueError(f"{len(self.class_weights)} class weights for {logits.shape[1]} classes")
        return logits.new_tensor(self.class_weights)[classes]


def ranked_probability_score(logits: Tensor, classes: Tensor) -> Tensor:
    """(B, ...) ranked probability score of logits (B, K, ...) against class numbers (B, ...), 0 to K - 1."""
    below = logits.softmax(dim=1).cumsum(dim=1)[:, :-1]
    k = torch.arange(below.shape[1], device=classes.device).view(1, -1, *[1] * (classes.ndim - 1))
    return (below - (classes.unsqueeze(1) <= k).to(below)).square().sum(dim=1)
