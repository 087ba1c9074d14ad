"""Average precision and area under the ROC curve over voxels: exact per subject, and pooled over subjects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from monai.utils import evenly_divisible_all_gather
from torch import Tensor

from dmri_monai.metrics.subject_metric import SubjectMetric, counted

__all__ = ["VoxelRanking", "average_precision", "roc_auc", "score_bins"]

Score = Literal["average_precision", "roc_auc"]
# logits just beyond those of the float32 numbers next to 0 (2^-149) and to 1 (1 - 2^-24)
LOWEST, HIGHEST = -150 * math.log(2), 25 * math.log(2)


class VoxelRanking(SubjectMetric):
    """How well scores rank voxels: average precision or area under the ROC curve.

    y_pred: (B, C, X, Y, Z) scores in [0, 1]; y: (B, C, X, Y, Z) of 0 and 1, negative values and NaN are ignored;
    mask: (B, 1, X, Y, Z), voxels > 0 count.  Each subject's row holds the exact value of every channel, NaN without
    positives (and, for the ROC curve, without negatives).
    pooled: `aggregate` gives the value of all voxels of all subjects together instead of the mean over subjects,
    from a histogram of `bins` scores, whose memory does not grow with the subjects; its error is below 1e-4 unless all
    scores lie within a few hundredths of each other.
    names: of the channels.  include_background: whether channel 0 counts.
    Raises ValueError for scores outside [0, 1], such as logits.
    """

    def __init__(
        self,
        score: Score = "average_precision",
        names: Sequence[str] = ("lesion",),
        *,
        pooled: bool = False,
        include_background: bool = True,
        bins: int = 65_536,
    ) -> None:
        if score not in get_args(Score):
            raise ValueError(f"score is {score!r}, expected one of {get_args(Score)}")
        self.curve = {"average_precision": average_precision, "roc_auc": roc_auc}[score]
        self.pooled, self.first, self.bins = pooled, 0 if include_background else 1, bins
        self._counts = torch.zeros(len(names), 2, bins, dtype=torch.int64)
        super().__init__(names)

    def reset(self) -> None:
        super().reset()
        self._counts.zero_()

    def measure(self, pred: Tensor, target: Tensor, **inputs: Tensor) -> list[Tensor | float]:
        scores, labels = pred[self.first :], target[self.first :]
        if len(scores) != len(self.names) or scores.shape != labels.shape:
            raise ValueError(
                f"scores have shape {tuple(scores.shape)} and labels {tuple(labels.shape)}, expected "
                f"{len(self.names)} channels each: {list(self.names)}"
            )
        return [self._channel(c, scores[c], labels[c], inputs.get("mask")) for c in range(len(scores))]

    def _channel(self, channel: int, scores: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        valid = counted(~labels.isnan() & (labels >= 0), mask)
        scores, positive = scores[valid].double(), labels[valid] > 0
        if scores.numel() and not (scores.min() >= 0 and scores.max() <= 1):
            limits = f"[{scores.min():.4g}, {scores.max():.4g}]"
            raise ValueError(f"scores lie in {limits}, expected probabilities in [0, 1]")
        index = score_bins(scores, self.bins)
        self._counts[channel] += _counts(index, positive, self.bins).cpu()
        levels, index = torch.unique(scores, return_inverse=True)
        return self.curve(*_counts(index, positive, len(levels)).flip(1))

    def aggregate(self) -> Tensor:
        if not self.pooled:
            return super().aggregate()
        counts = evenly_divisible_all_gather(self._counts.unsqueeze(0), concat=True).sum(dim=0)
        return torch.stack([self.curve(*channel.flip(1)) for channel in counts]).nanmean()


def score_bins(scores: Tensor, bins: int) -> Tensor:
    """(V,) bin of each score in [0, 1], in the order of the scores.

    Half of the resolution goes to the scores and half to their logits: networks put nearly all voxels next to 0,
    where bins of equal width would tie them.  The order is all that a ranking needs, so any monotone scale will do.
    """
    logits = scores.double().logit().clamp(LOWEST, HIGHEST)
    place = (scores.double() + (logits - LOWEST) / (HIGHEST - LOWEST)) / 2
    return (place * bins).long().clamp(0, bins - 1)


def _counts(index: Tensor, positive: Tensor, n: int) -> Tensor:
    """(2, n) number of positive and of negative voxels of each index."""
    return torch.stack([index[positive].bincount(minlength=n), index[~positive].bincount(minlength=n)])


def average_precision(positives: Tensor, negatives: Tensor) -> Tensor:
    """Sum over thresholds of precision x gain in recall; (T,) counts at each score, highest score first."""
    hits = positives.cumsum(0).double()
    precision = hits / (hits + negatives.cumsum(0)).clamp(min=1)
    return (precision * positives).sum() / _total(positives)


def roc_auc(positives: Tensor, negatives: Tensor) -> Tensor:
    """Probability that a positive outranks a negative, ties count half; (T,) counts, highest score first."""
    above = positives.cumsum(0).double() - positives / 2
    return (negatives * above).sum() / (_total(positives) * _total(negatives))


def _total(counts: Tensor) -> Tensor:
    total = counts.sum().double()
    return torch.where(total > 0, total, torch.nan)
