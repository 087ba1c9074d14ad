"""Transforms of labels and predictions that the tasks need."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from dmri_monai.gradients import b0_threshold_of
from dmri_monai.qspace.axes import harmonics_to_axis
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.qspace.conventions import from_basis
from dmri_monai.qspace.fibre_density import DENSITY_ORDER, density_of_peaks, number_of_peaks, peaks_of_density
from dmri_monai.so3 import n_coefficients
from dmri_monai.transforms.rows import item_table, like, plain, with_meta
from dmri_monai.transforms.same_grid import check_same_grid

__all__ = [
    "CheckLabeld",
    "DensityLabeld",
    "DensityToAxisd",
    "DensityToCountd",
    "FractionLabeld",
    "HarmonicsToPeaksd",
    "HeadMaskd",
    "IgnoreOutsided",
    "LesionMapsd",
    "LogitsToFractionsd",
]

MOST_SUM = 1.01  # of volume fractions: what rounding and interpolation may leave


class CheckLabeld(MapTransform):
    """Check that a label lies on the grid of the scan and holds what its task expects; changes nothing.

    n_classes: the label is one volume of whole numbers below it; None: another kind of volumes.
    volumes: how many of these there may be, and `meaning` what they are; by default peaks, 3n volumes.
    Raises ValueError naming the label's file, and what it holds and should hold.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        n_classes: int | None = None,
        image_key: str = "image",
        *,
        volumes: Sequence[int] | None = None,
        meaning: str = "3 for each peak",
    ) -> None:
        super().__init__(keys)
        self.n_classes, self.image_key = n_classes, image_key
        self.volumes, self.meaning = volumes, meaning

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        for key in self.key_iterator(dict(data)):
            check_same_grid(data[self.image_key], data[key], key, "CheckLabeld")
            self._check_values(data[key])
        return dict(data)

    def _check_values(self, label: MetaTensor) -> None:
        values = label.as_tensor()
        if self.n_classes is None:
            if len(values) % 3 if self.volumes is None else len(values) not in self.volumes:
                raise ValueError(f"label: {len(values)} volumes, expected {self.meaning}: {_file(label)}")
            return
        if len(values) != 1:
            raise ValueError(f"label: {len(values)} volumes, expected 1: {_file(label)}")
        wrong = values[(values != values.round()) | (values < 0) | (values >= self.n_classes)]
        if len(wrong):
            expected = f"expected whole numbers from 0 to {self.n_classes - 1}"
            raise ValueError(f"label: holds {float(wrong[0]):g}, {expected}: {_file(label)}")


class IgnoreOutsided(MapTransform):
    """Set a label to `value` where `mask` (1, X, Y, Z) is 0, for losses and metrics that ignore that value.

    ValueError for a mask on another grid.
    """

    def __init__(self, keys: KeysCollection = "label", value: float = -1.0, mask_key: str = "mask") -> None:
        super().__init__(keys)
        self.value, self.mask_key = value, mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.mask_key in item:
            mask = torch.as_tensor(item[self.mask_key])
            for key in self.key_iterator(item):
                check_same_grid(item[key], mask, self.mask_key, "IgnoreOutsided")
                item[key] = like(item[key], torch.where(plain(mask) > 0, item[key].as_tensor(), self.value))
        return item


class HarmonicsToPeaksd(MapTransform):
    """Axes as l = 2 harmonics (5, X, Y, Z) to peaks (3, X, Y, Z) of length 1 in the same frame.

    NaN where the harmonics are 0, and where `mask_key` (1, X, Y, Z) is 0, if the item has it.
    """

    def __init__(self, keys: KeysCollection = "pred", mask_key: str = "head") -> None:
        super().__init__(keys)
        self.mask_key = mask_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            field = torch.as_tensor(item[key])
            axes = harmonics_to_axis(field.as_subclass(Tensor).float().unsqueeze(0))[0]
            there = axes.norm(dim=0, keepdim=True) > 0
            if self.mask_key in item:
                there = there & (torch.as_tensor(item[self.mask_key]).as_subclass(Tensor).to(axes.device) > 0)
            peaks = torch.where(there, axes, torch.nan)
            item[key] = like(field, peaks) if isinstance(field, MetaTensor) else peaks
        return item


class DensityLabeld(MapTransform):
    """A label of fibres, world frame, to its orientation density: harmonics (45, X, Y, Z) in e3nn's convention.

    The label is an orientation density of 45 volumes in MRtrix3's convention, or in e3nn's where its meta data name
    irreps (`LoadHarmonicsd`), or peaks (3n, X, Y, Z) whose length is the volume fraction, NaN or 0 for none.  NaN
    where it is infinite (`IgnoreOutsided`), so that losses and metrics pass over these voxels.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            label = plain(item[key]).float()
            ignored = label.isinf().any(0)
            known = torch.where(ignored, 0.0, label)
            if getattr(item[key], "meta", {}).get("irreps") is not None:
                density = known
            elif len(label) == n_coefficients(DENSITY_ORDER):
                density = from_basis(known, "tournier07", legacy=False)
            else:
                density = density_of_peaks(known)
            item[key] = with_meta(item[key], torch.where(ignored, torch.nan, density))
        return item


class DensityToAxisd(MapTransform):
    """Fibre orientation densities (45, X, Y, Z) to the axis of their largest peak (3, X, Y, Z) in the same frame.

    The axis has length 1; NaN where there is no peak.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            peak = peaks_of_density(plain(item[key]), count=1)
            item[key] = with_meta(item[key], peak / peak.norm(dim=0, keepdim=True))
        return item


class DensityToCountd(MapTransform):
    """Fibre orientation densities (45, X, Y, Z) to the number of their peaks (1, X, Y, Z), 0 to 3."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            number = number_of_peaks(peaks_of_density(plain(item[key])))
            item[key] = with_meta(item[key], number.unsqueeze(0).float())
        return item


class FractionLabeld(MapTransform):
    """A label of tissue to volume fractions of WM, GM and CSF (3, X, Y, Z); NaN stays.

    The label is these fractions, or one volume of class numbers, 1 for WM, 2 for GM, 3 for CSF, which have all of
    their voxel.  ValueError naming the file for fractions outside of 0 to 1, or that sum to more.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            label = plain(item[key]).float()
            if len(label) == 1:
                label = torch.where(
                    label.isnan(), torch.nan, torch.cat([(label == k).float() for k in (1, 2, 3)])
                )
            low, high = label.nan_to_num(0.0).min(), label.nan_to_num(0.0).sum(0).max()
            if low < 1 - MOST_SUM or high > MOST_SUM:
                raise ValueError(
                    f"label: fractions from {float(low):g}, summing to {float(high):g}, expected 0 to 1: "
                    f"{_file(item[key])}"
                )
            item[key] = with_meta(item[key], label)
        return item


class LogitsToFractionsd(MapTransform):
    """Logits of WM, GM, CSF and anything else (4, X, Y, Z) to the fractions of the first three (3, X, Y, Z)."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            field = torch.as_tensor(item[key])
            fractions = field.as_subclass(Tensor).float().softmax(dim=0)[:-1]
            item[key] = like(field, fractions) if isinstance(field, MetaTensor) else fractions
        return item


class LesionMapsd(MapTransform):
    """Add `pred_map` and `label_map` (1, X, Y, Z) of 0 and 1 from the scores in `keys` and their label.

    Voxels whose label is negative (outside the mask) are 0 in both.
    """

    def __init__(
        self, keys: KeysCollection = "pred", label_key: str = "label", threshold: float = 0.5
    ) -> None:
        super().__init__(keys)
        self.label_key, self.threshold = label_key, threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        label = plain(item[self.label_key])
        for key in self.key_iterator(item):
            scores = plain(item[key])
            found = (scores >= self.threshold) & (label.to(scores.device) >= 0)
            item[f"{key}_map"] = with_meta(item[key], found.float())
            item[f"{self.label_key}_map"] = with_meta(item[self.label_key], (label > 0).float())
        return item


class HeadMaskd(MapTransform):
    """Add `name` (1, X, Y, Z) uint8: the :func:`dmri_monai.qspace.b0.head_mask` of the mean b0 of a raw scan."""

    def __init__(self, keys: KeysCollection = "image", name: str = "head", fraction: float = 0.1) -> None:
        super().__init__(keys)
        self.name, self.fraction = name, fraction

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            bvals, _ = item_table(item, key, "HeadMaskd")
            b0 = mean_b0(item[key].as_tensor(), bvals, b0_threshold_of(item[key]))
            head = head_mask(b0, self.fraction).to(torch.uint8)
            item[self.name] = like(item[key], head.unsqueeze(0))
        return item


def _file(label: MetaTensor) -> str:
    return str(label.meta.get("filename_or_obj", "unknown file"))
