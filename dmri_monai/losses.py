"""Losses that know the structure of dMRI channels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["HarmonicReconstructionLoss"]


class HarmonicReconstructionLoss(nn.Module):
    """Mean squared error of harmonic channels inside the head.

    pred, target: (B, C, X, Y, Z), channel 0 the normalised b0; voxels count where the target's b0 is above
    `foreground` (a fraction of the b0's median). In the orthonormal basis the sum of squares over coefficients is, by
    Parseval's theorem, the squared error of the signal over the sphere.
    """

    def __init__(self, foreground: float = 0.1) -> None:
        super().__init__()
        self.foreground = foreground

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        if pred.shape != target.shape:
            raise ValueError(
                f"reconstruction loss: prediction {tuple(pred.shape)}, target {tuple(target.shape)}"
            )
        inside = (target[:, :1] > self.foreground).to(pred.dtype)
        error = F.mse_loss(pred, target, reduction="none") * inside
        return error.sum() / (inside.sum() * target.shape[1]).clamp(min=1)
