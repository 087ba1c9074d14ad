"""The range of the scans in a data set that a model is trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmri_monai.inference.seen_scans import ScanHeader, range_seen
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.training_range import TrainingRange
from dmri_monai.training.continuation import loader_of
from dmri_monai.transforms import RandDropShelld

__all__ = ["training_range"]


def training_range(dataset: Any, spec: ModelSpec) -> TrainingRange:
    """Lowest and highest number of directions, b-value and voxel size of the scans of `dataset`; SNR is not measured.

    dataset: with `data`, items whose `image` is a scan file, and a `transform` that loads it with `LoadDWId`.  Headers
    and b-values are read, images are not.  Empty where an image is no such file or cannot be read, of which loading it
    tells.
    """
    transform: Any = getattr(dataset, "transform", None)
    load = loader_of(transform)
    items = list(getattr(dataset, "data", []))
    found = [item.get("image") for item in items if isinstance(item, Mapping)]
    images = [image for image in found if isinstance(image, str | Path)]
    if load is None or len(images) < len(items):
        return TrainingRange()
    drops_shells = any(isinstance(part, RandDropShelld) for part in transform.transforms)
    try:
        with warnings.catch_warnings(action="ignore"):  # they are given where the scans are loaded
            scans = [ScanHeader.read(image, load.bvecs, spec.b0_threshold) for image in images]
        return range_seen(scans, spec, drops_shells)
    except (OSError, ValueError):
        return TrainingRange()
