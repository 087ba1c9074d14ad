"""Image quality inside a mask: PSNR and SSIM."""

from __future__ import annotations

import torch
from monai.metrics.regression import compute_ssim_and_cs
from torch import Tensor

from dmri_monai.metrics.subject_metric import SubjectMetric, counted

__all__ = ["MaskedPSNR", "MaskedSSIM"]


class MaskedPSNR(SubjectMetric):
    """Peak signal-to-noise ratio in dB over all channels inside the mask: 10 log10(range² / MSE).

    y_pred, y: (B, C, X, Y, Z); mask: (B, 1, X, Y, Z), voxels > 0 count.
    data_range: None for the range of y inside the mask, of each subject.  Equal images give infinity.
    """

    def __init__(self, data_range: float | None = None) -> None:
        super().__init__(("psnr_db",))
        self.data_range = data_range

    def measure(self, pred: Tensor, target: Tensor, **inputs: Tensor) -> list[Tensor | float]:
        inside = _inside(pred, target, inputs.get("mask"))
        found, true = pred[:, inside].double(), target[:, inside].double()
        if true.numel() == 0:
            return [torch.nan]
        return [10 * torch.log10(_range(true, self.data_range) ** 2 / (found - true).square().mean())]


class MaskedSSIM(SubjectMetric):
    """Structural similarity, mean of MONAI's map (Gaussian window, sigma 1.5) over channels and voxels of the mask.

    y_pred, y: (B, C, X, Y, Z); mask: (B, 1, X, Y, Z), voxels > 0 count, except within half a window of the border,
    where the map has no value.  NaN where no voxel is left.
    data_range: None for the range of y inside the mask, of each subject.  window: odd size of the window.
    """

    def __init__(self, data_range: float | None = None, window: int = 7) -> None:
        super().__init__(("ssim",))
        if window < 3 or window % 2 == 0:
            raise ValueError(f"window is {window}, expected an odd size of at least 3")
        self.data_range, self.window = data_range, window

    def measure(self, pred: Tensor, target: Tensor, **inputs: Tensor) -> list[Tensor | float]:
        inside = _inside(pred, target, inputs.get("mask"))
        half = self.window // 2
        if not inside.any():
            return [torch.nan]
        data_range = float(_range(target[:, inside].double(), self.data_range))
        box = _box(inside, half)
        kept = inside[box][half:-half, half:-half, half:-half]
        if kept.numel() == 0 or not kept.any():
            return [torch.nan]
        maps = (
            self._map(pred[c][box], target[c][box], data_range)[kept].double().mean()
            for c in range(len(pred))
        )
        return [torch.stack(list(maps)).mean()]

    def _map(self, pred: Tensor, target: Tensor, data_range: float) -> Tensor:
        """SSIM of one channel, smaller than it by half a window on every side."""
        values, _ = compute_ssim_and_cs(
            pred[None, None],
            target[None, None],
            spatial_dims=3,
            data_range=data_range,
            kernel_size=(self.window,) * 3,
            kernel_sigma=(1.5,) * 3,
        )
        return values[0, 0]


def _inside(pred: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    if pred.shape != target.shape:
        raise ValueError(f"prediction has shape {tuple(pred.shape)}, target {tuple(target.shape)}")
    return counted(torch.ones_like(target[0], dtype=torch.bool), mask)


def _range(values: Tensor, given: float | None) -> Tensor:
    return values.max() - values.min() if given is None else values.new_tensor(given)


def _box(inside: Tensor, margin: int) -> tuple[slice, ...]:
    """Bounding box of the mask and a margin, inside the volume: the map is needed nowhere else."""
    edges = []
    for axis, size in enumerate(inside.shape):
        others = [d for d in range(3) if d != axis]
        index = torch.nonzero(inside.any(dim=others[1]).any(dim=others[0])).flatten()
        edges.append(slice(max(0, int(index[0]) - margin), min(size, int(index[-1]) + margin + 1)))
    return tuple(edges)
