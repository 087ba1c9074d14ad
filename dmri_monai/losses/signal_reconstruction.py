"""Reconstruction in the signal domain, at the scan's own measurements, all of them or the hidden ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dmri_monai.losses.masking import check_shape, inside, plain, weighted_mean
from dmri_monai.qspace.b0 import b0_reference, mean_b0
from dmri_monai.qspace.shell_fit import ShellFit
from dmri_monai.qspace.synthesis import harmonics_to_signal, measurement_groups

__all__ = ["MaskedReconstructionLoss", "SignalReconstructionLoss"]


class SignalReconstructionLoss(nn.Module):
    """Mean squared error of S/S0 at the scan's own directions, weighted by shell, and of the normalised b0.

    pred: (B, C, X, Y, Z) harmonic channels as `signal_to_harmonics` orders them, in the voxel frame.
    target: the clean scan as a mapping (a collated batch will do): `image` (B, N, X, Y, Z) raw, `bvals` (B, N)
    s/mm², `bvecs_voxel` (B, N, 3), optional `valid` (B, N) bool and `mask` (B, 1, X, Y, Z).
    A shell counts by its weight, however many directions it has; measurements of no shell do not count.  Voxels
    count inside `mask` or, without a mask, where b0 is above `foreground` times its median; never in air
    (`fit.min_b0`). With well-spread directions and equal weights it is the harmonic loss over 4 pi (Parseval), plus
    what no harmonic of the order can explain. The target's S/S0 is clipped as in the fit.
    shell_weights: one per shell, 1 by default. b0_weight: weight of the b0 channel. fit: options of the fit.
    """

    def __init__(
        self,
        shells: Sequence[float],
        l_max: int = 4,
        shell_weights: Sequence[float] | None = None,
        *,
        b0_weight: float = 1.0,
        foreground: float = 0.1,
        fit: ShellFit | None = None,
    ) -> None:
        super().__init__()
        weights = [1.0] * len(shells) if shell_weights is None else list(shell_weights)
        if len(weights) != len(shells):
            raise ValueError(f"{len(weights)} shell weights for {len(shells)} shells")
        if min([b0_weight, *weights]) < 0:
            raise ValueError(f"weights must be at least 0, got {weights} and {b0_weight} for b0")
        self.shells, self.l_max, self.weights = list(shells), l_max, [b0_weight, *weights]
        self.foreground, self.fit = foreground, fit or ShellFit()

    def forward(self, pred: Tensor, target: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """rows: (B, N) weight of each measurement within its shell; all 1 by default."""
        pred = plain(pred)  # first: a half-precision prediction must not round the target
        scan = _checked(target, pred)
        weights = self._row_weights(scan, rows).to(pred)
        b0, clean, voxels = self._clean(scan)
        signal = harmonics_to_signal(
            pred,
            scan["bvals"],
            scan["bvecs_voxel"],
            shells=self.shells,
            l_max=self.l_max,
            valid=scan.get("valid"),
            fit=self.fit,
        )
        error = torch.einsum("bn,bnxyz->bxyz", weights, (signal - clean).square())
        error = error + self.weights[0] * (pred[:, 0] - b0).square()
        total = (weights.sum(dim=1) + self.weights[0]).to(error)[:, None, None, None]
        # the mean of error / total, weighted by total: items that lack a shell count for less
        return weighted_mean(error / torch.where(total > 0, total, 1.0), total * voxels)

    def _row_weights(self, scan: Mapping[str, Tensor], rows: Tensor | None) -> Tensor:
        """(B, N) weight of each measurement; those of a shell sum to the weight of the shell."""
        groups = measurement_groups(scan["bvals"], self.shells, valid=scan.get("valid"), fit=self.fit)
        rows = (
            torch.ones_like(groups, dtype=torch.float32) if rows is None else rows.to(groups.device).float()
        )
        weights = torch.zeros_like(rows)
        for s, weight in enumerate(self.weights[1:], start=1):
            members = rows * (groups == s)
            total = members.sum(dim=1, keepdim=True)
            weights = weights + weight * members / torch.where(total > 0, total, 1.0)
        return weights

    def _clean(self, scan: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """b0 over its median (B, X, Y, Z), S/S0 (B, N, X, Y, Z) and the voxels that count (B, X, Y, Z)."""
        image, mask, valid = scan["image"], scan.get("mask"), scan.get("valid")
        b0s, ratios = [], []
        for b in range(len(image)):
            rows = None if valid is None else valid[b].bool()
            b0 = mean_b0(image[b], scan["bvals"][b], self.fit.b0_threshold, rows)
            reference = b0_reference(b0, None if mask is None else mask[b if len(mask) > 1 else 0])
            inverse = torch.where(b0 > self.fit.min_b0 * reference, 1 / b0, 0.0)
            ratio = (image[b] * inverse).nan_to_num(0.0, 0.0, 0.0)
            ratios.append(ratio if self.fit.clip is None else ratio.clamp(0.0, self.fit.clip))
            b0s.append((b0 / reference).nan_to_num(0.0, 0.0, 0.0))
        relative = torch.stack(b0s)
        bright = relative > max(self.fit.min_b0, self.foreground if mask is None else 0.0)
        return relative, torch.stack(ratios), inside(mask, bright)


class MaskedReconstructionLoss(nn.Module):
    """Reconstruction of measurements that the network did not see (masked q-space).

    loss: the signal loss to use.  target: as there, with `hidden` (B, N) bool, True for what was kept from the
    input.  Within a shell, hidden measurements weigh 1 and visible ones `visible_weight`; where that is 0, a shell
    without hidden measurements does not count.  The b0 counts by the `b0_weight` of `loss`; set it to 0 to judge
    hidden measurements alone.
    """

    def __init__(self, loss: SignalReconstructionLoss, visible_weight: float = 0.0) -> None:
        super().__init__()
        if visible_weight < 0:
            raise ValueError(f"visible_weight is {visible_weight}, expected at least 0")
        self.loss = loss
        self.visible_weight = visible_weight

    def forward(self, pred: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        if "hidden" not in target:
            raise ValueError(f"masked reconstruction: no 'hidden' in the target, only {sorted(target)}")
        check_shape("hidden", target["hidden"], tuple(target["bvals"].shape))
        hidden = target["hidden"].as_subclass(Tensor).float()
        loss: Tensor = self.loss(pred, target, rows=hidden + self.visible_weight * (1 - hidden))
        return loss


def _checked(target: Mapping[str, Tensor], pred: Tensor) -> dict[str, Tensor]:
    """The parts of `target` that count, as plain tensors: images on the device of `pred`, the table on the CPU.

    Shells are made of the table there; where it comes from there, no step waits for the device.
    """
    missing = [key for key in ("image", "bvals", "bvecs_voxel") if key not in target]
    if missing:
        raise ValueError(f"signal reconstruction: no {missing} in the target, only {sorted(target)}")
    keys = [k for k in ("image", "bvals", "bvecs_voxel", "valid", "mask") if target.get(k) is not None]
    places = {key: pred.device if key in ("image", "mask") else "cpu" for key in keys}
    scan = {key: target[key].as_subclass(Tensor).to(place) for key, place in places.items()}
    scan["image"] = scan["image"].to(pred.dtype)
    table = (len(pred), scan["image"].shape[1])
    check_shape("image", scan["image"], (*table, *pred.shape[2:]))
    check_shape("bvals", scan["bvals"], table)
    check_shape("bvecs_voxel", scan["bvecs_voxel"], (*table, 3))
    return scan
