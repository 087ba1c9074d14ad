"""The scans of an inference, one item each."""

from __future__ import annotations

from typing import Any

from monai.data import Dataset

from dmri_monai.failures import naming_scan

__all__ = ["ScanDataset"]


class ScanDataset(Dataset):
    """MONAI's Dataset of items with an `image`, whose transforms' errors name that scan and say what went wrong.

    MONAI's own say "applying transform" and the transform, with the cause somewhere above.
    """

    def _transform(self, index: int) -> Any:
        item = self.data[index]
        with naming_scan(item.get("image") if isinstance(item, dict) else None):
            return super()._transform(index)
