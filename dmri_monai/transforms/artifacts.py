"""The MONAI transform: random artifacts in a dictionary of scan and gradient table."""

from __future__ import annotations

import json
import warnings
from collections.abc import Hashable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import RandomizableTransform

from dmri_monai.artifacts.engine import Artifact, Preset, corrupt, load_preset, zero_invalid
from dmri_monai.artifacts.engine.record import slices_by_artifact
from dmri_monai.io.acquisition import require_usable
from dmri_monai.transforms.frames import voxel_rotation
from dmri_monai.transforms.rows import item_table, like

__all__ = ["RandDWIArtifactsd"]


class RandDWIArtifactsd(RandomizableTransform):
    """Corrupt the raw scan in `key` with artifacts drawn from a preset; keep the clean one as `target_key`.

    Item: `key` MetaTensor (N, X, Y, Z) raw signal, finite and non-negative; `bvals` (N,) s/mm2; `bvecs` (N,
    3) world. Both results share frame and meta data.  The table stays as acquired, as on a scanner.
    preset: "light", "normal", "strong", "all" (configs/artifacts/), the path of a JSON file or its content, a
    `Preset`, or one `Artifact` such as `Ghost(phase_deg=(2, 15))`, whose class documents how its parameters
    are drawn. prob: that a scan is corrupted at all.  field_map_key: (1, X, Y, Z) measured field map in Hz,
    used instead of a synthetic one.
    invalid: "raise" on NaN, infinite or negative voxels, or set them to "zero" before the artifacts, with a
    warning and their number in the record; the target keeps them.
    Adds `record_key`: what was drawn, as JSON (`replay` repeats it); and `record_key`_slices: (A, N, S) bool,
    which slices of which volumes each of the A artifacts (order of `ARTIFACTS`) changed, S slices along the
    array's slice axis.
    """

    def __init__(
        self,
        key: Hashable = "image",
        *,
        preset: str | Preset | Artifact | Mapping[str, Any] = "normal",
        prob: float = 1.0,
        target_key: Hashable = "target",
        record_key: str = "artifacts",
        field_map_key: Hashable | None = None,
        invalid: Literal["raise", "zero"] = "raise",
    ) -> None:
        if invalid not in ("raise", "zero"):
            raise ValueError(f"invalid is {invalid!r}, expected 'raise' or 'zero'")
        if not 0 <= prob <= 1:  # MONAI clips silently
            raise ValueError(f"prob is {prob!r}, expected 0 to 1")
        if target_key == key:
            raise ValueError(f"target_key is {target_key!r}, expected another key than that of the image")
        RandomizableTransform.__init__(self, prob)
        self.key = key
        self.preset = load_preset(preset)
        self.target_key = target_key
        self.record_key = record_key
        self.field_map_key = field_map_key
        self.invalid = invalid
        self.seed = 0

    def randomize(self, data: Any = None) -> None:
        super().randomize(None)
        self.seed = int(self.R.randint(2**32, dtype=np.uint64))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        self.randomize()
        image = item[self.key]
        rotation = voxel_rotation(image, type(self).__name__)
        bvals, bvecs = item_table(item, self.key, type(self).__name__)
        if self._do_transform:
            require_usable(image.meta)
        field = None if self.field_map_key is None else torch.as_tensor(item[self.field_map_key])[0]
        raw, count = zero_invalid(image.as_tensor()) if self.invalid == "zero" else (image.as_tensor(), 0)
        if count:
            warnings.warn(f"{self.key}: {count} voxels are NaN, infinite or negative; set to 0", stacklevel=2)
        corrupted, record = corrupt(
            raw,
            bvals,
            bvecs.double().cpu() @ rotation,
            affine=image.affine,
            preset=self.preset if self._do_transform else Preset("none", ()),
            seed=self.seed,
            meta=image.meta,
            field_hz=field.as_tensor() if isinstance(field, MetaTensor) else field,
        )
        record["invalid_voxels"] = count
        item[self.target_key] = image
        item[self.key] = like(image, corrupted)
        item[self.record_key] = json.dumps(record)
        item[f"{self.record_key}_slices"] = slices_by_artifact(record, image.affine)
        return item
