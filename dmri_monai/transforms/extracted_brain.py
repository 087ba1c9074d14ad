"""Scans whose brain was extracted: what still has signal is brain, however little a network knows of such scans."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy import ndimage
from torch import Tensor

from dmri_monai.transforms.brain_body import told_tissue
from dmri_monai.transforms.rows import like, plain

__all__ = ["FillExtractedBraind"]

LEAST_AIR = 0.1  # of all voxels: without signal, as extraction leaves them
SPECK = 0.05  # of the largest body with signal: what is smaller and apart is no brain, such as eyes that a mask left in


class FillExtractedBraind(MapTransform):
    """Give each voxel with signal to a tissue, in a scan whose brain was extracted.

    A network that learned from whole heads takes the rim of such a brain for what lies around brains.  A brain counts
    as extracted where a tenth of the voxels, at least, have no signal, and the network leaves no more than the share
    `most_left` of the others to no tissue; of a whole head it leaves more.  Then no voxel with signal is left, but for
    bodies apart that have less than a twentieth of the largest one's voxels, and none without is told.

    The prediction is probabilities of outside and the tissues (4, X, Y, Z), or fractions of the tissues (3, X, Y, Z),
    which afterwards sum to 1 or 0.  `signal_key` (1, X, Y, Z), on the same grid, is true where there is signal; without
    it nothing changes.  Adds `extracted_key`, whether the brain counts as extracted.
    """

    def __init__(
        self,
        keys: KeysCollection,
        most_left: float,
        signal_key: str = "signal",
        extracted_key: str = "extracted",
    ) -> None:
        super().__init__(keys)
        self.most_left, self.signal_key, self.extracted_key = most_left, signal_key, extracted_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.signal_key not in item:
            return item
        for key in self.key_iterator(item):
            values = plain(item[key])
            if len(values) not in (3, 4):
                raise ValueError(
                    f"FillExtractedBraind: {len(values)} channels, expected 3 of fractions or 4 of probabilities"
                )
            signal = plain(torch.as_tensor(item[self.signal_key]))[0].to(values.device) > 0
            if signal.shape != values.shape[1:]:
                raise ValueError(
                    f"FillExtractedBraind: {self.signal_key!r} has shape {tuple(signal.shape)}, expected "
                    f"{tuple(values.shape[1:])} of {key!r}"
                )
            item[self.extracted_key] = self._extracted(values, signal)
            if item[self.extracted_key]:
                item[key] = like(item[key], _filled(values, _without_specks(signal)))
        return item

    def _extracted(self, values: Tensor, signal: Tensor) -> bool:
        count = int(signal.sum())
        if count == 0 or signal.numel() - count < LEAST_AIR * signal.numel():
            return False
        return float((signal & ~told_tissue(values, "FillExtractedBraind")).sum()) <= self.most_left * count


def _without_specks(signal: Tensor) -> Tensor:
    bodies, _ = ndimage.label(signal.cpu().numpy())
    sizes = np.bincount(bodies.ravel())
    sizes[0] = 0
    return torch.from_numpy((sizes >= max(SPECK * sizes.max(), 1))[bodies]).to(signal.device)


def _filled(values: Tensor, signal: Tensor) -> Tensor:
    tissues = values[-3:].clamp(min=torch.finfo(values.dtype).tiny ** 0.5)
    tissues = torch.where(signal, tissues / tissues.sum(0), 0.0)
    return tissues if len(values) == 3 else torch.cat([(~signal).to(values).unsqueeze(0), tissues])
