"""Reconstruction of the clean scan as harmonic channels: the loss of the pretext tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dmri_monai.losses.masking import inside, plain, weighted_mean
from dmri_monai.qspace.synthesis import channel_groups

__all__ = ["HarmonicReconstructionLoss"]


class HarmonicReconstructionLoss(nn.Module):
    """Mean squared error of harmonic channels inside the head, weighted by shell.

    pred, target: (B, C, X, Y, Z), channels as `signal_to_harmonics` orders them, channel 0 the normalised b0;
    voxels count where the target's b0 is above `foreground` (a fraction of the b0's median), or where `mask`
    (B, 1, X, Y, Z) is > 0.  In the orthonormal basis the sum of squares over the coefficients of a shell is, by
    Parseval's theorem, the squared error of its S/S0 integrated over the sphere; an
    `order_scale` in the fit weights the orders by its square.
    shell_weights: one number per shell, in ascending order of b; without them every channel weighs 1. b0_weight:
    weight of channel 0. presence: there is one presence channel per shell (missing="zero"); shells that the target
    lacks, and the presence channels, then do not count.
    Raises ValueError where shapes and channels do not fit.
    """

    def __init__(
        self,
        foreground: float = 0.1,
        shell_weights: Sequence[float] | None = None,
        *,
        l_max: int = 4,
        b0_weight: float = 1.0,
        presence: bool = False,
    ) -> None:
        super().__init__()
        if presence and shell_weights is None:
            raise ValueError("presence needs shell_weights, one per shell: they tell the number of shells")
        if min([b0_weight, *(shell_weights or [])]) < 0:
            raise ValueError(f"weights must be at least 0, got {shell_weights} and {b0_weight} for b0")
        self.foreground = foreground
        self.shell_weights = list(shell_weights) if shell_weights is not None else None
        self.l_max, self.b0_weight, self.presence = l_max, b0_weight, presence

    def forward(self, pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        if pred.shape != target.shape:
            raise ValueError(
                f"reconstruction loss: prediction {tuple(pred.shape)}, target {tuple(target.shape)}"
            )
        pred, target = plain(pred), plain(target)
        everywhere = torch.ones_like(target[:, 0], dtype=torch.bool)
        voxels = target[:, 0] > self.foreground if mask is None else inside(mask, everywhere)
        weights = self._channel_weights(target)[..., None, None, None] * voxels.unsqueeze(1)
        return weighted_mean((pred - target).square(), weights)

    def _channel_weights(self, target: Tensor) -> Tensor:
        """(B, C) weight of every channel of every item."""
        if self.shell_weights is None:
            weights = target.new_ones(target.shape[1])
            weights[0] = self.b0_weight
            return weights.expand(len(target), -1)
        n = len(self.shell_weights)
        groups = channel_groups(n, self.l_max, self.presence).to(target.device)
        if len(groups) != target.shape[1]:
            raise ValueError(
                f"reconstruction loss: {target.shape[1]} channels, expected {len(groups)} for {n} shells, "
                f"l_max = {self.l_max}{' and presence' if self.presence else ''}"
            )
        weights = target.new_tensor([self.b0_weight, *self.shell_weights, 0.0]).expand(len(target), -1)
        if self.presence:
            there = (target[:, 1 + n : 1 + 2 * n].amax(dim=(2, 3, 4)) > 0).to(weights)
            weights = torch.cat([weights[:, :1], weights[:, 1:-1] * there, weights[:, -1:]], dim=1)
        return weights[:, groups]  # group -1 is the last entry, 0
