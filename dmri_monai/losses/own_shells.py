"""Reconstruction of hidden measurements where every scan has shells of its own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dmri_monai.gradients import B0_THRESHOLD, cluster_shells
from dmri_monai.losses.signal_reconstruction import MaskedReconstructionLoss, SignalReconstructionLoss
from dmri_monai.qspace.shell_fit import ShellFit
from dmri_monai.qspace.shell_set import merged_shells
from dmri_monai.qspace.synthesis import channel_groups

__all__ = ["OwnShellsReconstructionLoss"]

ANY_DISTANCE = 1e3  # tolerance with which a measurement belongs to the nearest shell, as in a merged one


class OwnShellsReconstructionLoss(nn.Module):
    """:class:`MaskedReconstructionLoss` of each scan at its own shells, the mean over the batch.

    pred: (B, C, X, Y, Z) channels of `harmonic_irreps(slots, l_max, presence=True)` in the voxel frame; slots as
    :func:`dmri_monai.qspace.shell_set.shell_set` fills them, those of absent shells and of presence do not count.
    target: as there, with `valid` where scans of a batch have other tables.
    """

    def __init__(self, slots: int, l_max: int, b0_threshold: float = B0_THRESHOLD) -> None:
        super().__init__()
        self.slots, self.l_max, self.b0_threshold = slots, l_max, b0_threshold
        self.fit = ShellFit(tolerance=ANY_DISTANCE, b0_threshold=b0_threshold)
        self.groups = channel_groups(slots, l_max, presence=True)

    def forward(self, pred: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        losses = [
            self._one(pred[b : b + 1], {key: value[b : b + 1] for key, value in target.items()})
            for b in range(len(pred))
        ]
        return torch.stack(losses).mean()

    def _one(self, pred: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        bvals = target["bvals"][0].as_subclass(Tensor).cpu()
        if target.get("valid") is not None:
            bvals = bvals[target["valid"][0].as_subclass(Tensor).bool().cpu()]
        shells = [s.bval for s in merged_shells(cluster_shells(bvals, self.b0_threshold), self.slots)]
        present = (self.groups >= 0) & (self.groups <= len(shells))
        channels = torch.nonzero(present).flatten().to(pred.device)
        signal = SignalReconstructionLoss(shells, self.l_max, b0_weight=0.0, fit=self.fit)
        loss: Tensor = MaskedReconstructionLoss(signal)(pred.index_select(1, channels), target)
        return loss
