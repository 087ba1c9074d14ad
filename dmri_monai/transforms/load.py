"""Load a diffusion scan with its gradient table."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal

from monai.config import KeysCollection
from monai.transforms import MapTransform

from dmri_monai.gradients import B0_THRESHOLD
from dmri_monai.io import read_dwi

__all__ = ["LoadDWId"]


class LoadDWId(MapTransform):
    """Replace the path in `keys` by the scan: MetaTensor (N, X, Y, Z) float32 with its RAS+ affine.

    Adds `bvals` (N,) in s/mm² and `bvecs` (N, 3), unit world vectors, zero for b0, both float32.  Where the
    scan's sidecar says so, the meta data hold `phase_encoding_world` and `slice_world` (3,).  Masks and
    labels are loaded with MONAI's `LoadImaged` (`ensure_channel_first=True`), whose affine is the same RAS+
    one. Raises ValueError, TypeError or OSError naming the file, as :func:`dmri_monai.io.read_dwi`.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        *,
        bvecs: Literal["auto", "eddy"] = "auto",
        b0_threshold: float = B0_THRESHOLD,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.bvecs: Literal["auto", "eddy"] = bvecs
        self.b0_threshold = b0_threshold

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            image, table = read_dwi(item[key], bvecs=self.bvecs, b0_threshold=self.b0_threshold)
            item[key] = image
            item["bvals"] = table.bvals.float()
            item["bvecs"] = table.bvecs.float()
        return item
