"""Angular loss of the principal fibre direction, which is an axis: its sign has no meaning."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dmri_monai.losses.masking import check_shape, inside, plain, weighted_mean
from dmri_monai.qspace.axes import axis_to_harmonics

__all__ = ["AxialLoss"]

Output = Literal["vector", "l2"]
CHANNELS = {"vector": 3, "l2": 5}


class AxialLoss(nn.Module):
    """Mean sin² of the angle between predicted and true axis, the same for v and -v.

    pred, output="vector": (B, 3, X, Y, Z) of any length (`1o`); output="l2": (B, 5, X, Y, Z) l = 2 harmonics in
    e3nn's order (`2e`), whose loss 2/3 (1 - cosine with the harmonics of the true axis) is sin² of the angle too
    where the prediction is those of an axis.  A `2e` output suits equivariant networks better: an even signal
    alone cannot tell them which end of an axis to point to.
    target: (B, 3n, X, Y, Z) peaks in the frame of the prediction, the first one is the principal direction; zero
    and NaN (no fibre) do not count.  mask: (B, 1, X, Y, Z), voxels > 0 count.
    epsilon: predictions shorter than it count as undecided.  The zero prediction has the loss of a right angle
    (vector) or 2/3 (l2, that of a random axis).  Smooth everywhere, at 0 and 90 degrees too.
    """

    def __init__(self, output: Output = "vector", epsilon: float = 1e-3) -> None:
        super().__init__()
        if output not in get_args(Output):
            raise ValueError(f"output is {output!r}, expected one of {get_args(Output)}")
        if not epsilon > 0:
            raise ValueError(f"epsilon is {epsilon}, expected a positive number")
        self.output = output
        self.epsilon = epsilon

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        channels = CHANNELS[self.output]
        check_shape(f"{self.output} prediction", pred, (len(pred), channels, *pred.shape[2:]))
        axis = principal_axis(target)
        check_shape("direction target", axis, (len(pred), 3, *pred.shape[2:]))
        length = axis.norm(dim=1, keepdim=True)
        valid = length > 0
        axis = axis / torch.where(valid, length, 1.0)
        loss = vector_loss if self.output == "vector" else harmonic_loss
        value: Tensor = loss(plain(pred), axis, self.epsilon)
        return weighted_mean(value, inside(mask, valid[:, 0]).to(value))


def principal_axis(peaks: Tensor) -> Tensor:
    """(B, 3, ...) first of peaks (B, 3n, ...), 0 for NaN.  ValueError where the channels are not 3n."""
    if peaks.ndim < 3 or peaks.shape[1] == 0 or peaks.shape[1] % 3:
        raise ValueError(f"peaks have shape {tuple(peaks.shape)}, expected (B, 3n, X, Y, Z)")
    first = plain(peaks)[:, :3]
    return torch.where(first.isfinite().all(dim=1, keepdim=True), first, 0.0)


def vector_loss(pred: Tensor, axis: Tensor, epsilon: float) -> Tensor:
    """(B, ...) sin² of the angle between `pred` (B, 3, ...) and unit `axis`; 1 for a zero prediction.

    From the cross product: 1 - cos² would lose small angles to rounding.
    """
    across = torch.linalg.cross(pred, axis.to(pred), dim=1).square().sum(dim=1)
    loss: Tensor = (across + epsilon**2) / (pred.square().sum(dim=1) + epsilon**2)
    return loss


def harmonic_loss(pred: Tensor, axis: Tensor, epsilon: float) -> Tensor:
    """(B, ...) 2/3 (1 - cosine) of l = 2 harmonics `pred` (B, 5, ...) and those of unit `axis` (B, 3, ...)."""
    unit = axis_to_harmonics(axis).to(pred) * math.sqrt(4 * math.pi / 5)
    length = (pred.square().sum(dim=1, keepdim=True) + epsilon**2).sqrt()
    # half the squared distance of unit vectors is 1 - cosine, without its rounding near 0
    distance = (pred / length - unit).square().sum(dim=1) / 2
    short = (epsilon**2 / length.square()).squeeze(
        1
    ) / 2  # what |pred / length| lacks to 1, for a zero prediction
    return 2 / 3 * (distance + short)
