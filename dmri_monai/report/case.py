"""What a report shows of one scan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monai.data import MetaTensor
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_dwi
from dmri_monai.transforms.same_grid import check_same_grid

__all__ = ["Case", "load_case"]

DIRECTIONS = ("prediction", "truth")  # what may be a field of peaks


@dataclass(frozen=True)
class Case:
    """One scan of a report.

    image: MetaTensor (N, X, Y, Z) of raw signal with its affine, or the path of a DWI file with sidecars.
    table: its gradient table; None when `image` is a path (the sidecars are read). prediction, truth: on
    the image's grid, integer labels (X, Y, Z) or (1, X, Y, Z), outlined, 0 is background; or peaks (3n, X, Y, Z), x
    y z per peak in the world frame (RAS+), length = amplitude, NaN or zero for none, drawn as sticks.
    class_names: name of each label.  metrics: name -> value.  maps: further scalar maps (X, Y, Z) or (1, X, Y, Z),
    such as an uncertainty, each shown as its own picture.  reader: options of :func:`read_dwi` for a path.
    """

    name: str
    image: MetaTensor | str | Path
    table: GradientTable | None = None
    prediction: Tensor | None = None
    truth: Tensor | None = None
    class_names: Mapping[int, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    reader: Mapping[str, Any] = field(default_factory=dict)


def load_case(case: Case) -> tuple[MetaTensor, GradientTable, dict[str, Tensor]]:
    """Image (N, X, Y, Z), its table, and the layers of `case` by name ("prediction", "truth", maps): (X, Y, Z), or
    (3n, X, Y, Z) where they are peaks.

    Raises TypeError for an image without affine and ValueError for a volume that is not on the image's grid.
    """
    image, table = case.image, case.table
    if isinstance(image, str | Path):
        image, read = read_dwi(image, **case.reader)
        table = table or read
    if not isinstance(image, MetaTensor):
        raise TypeError(f"{case.name}: image is a {type(image).__name__}, expected a MetaTensor or a path")
    if image.ndim != 4:
        raise ValueError(f"{case.name}: image has shape {tuple(image.shape)}, expected (N, X, Y, Z)")
    if table is None or len(table) != len(image):
        raise ValueError(
            f"{case.name}: {0 if table is None else len(table)} gradients for {len(image)} volumes"
        )
    given = {"prediction": case.prediction, "truth": case.truth, **case.maps}
    layers = {name: _on_grid(case.name, name, x, image) for name, x in given.items() if x is not None}
    return image, table, layers


def _on_grid(case: str, name: str, volume: Tensor, image: MetaTensor) -> Tensor:
    stacked = volume if volume.ndim == 4 else volume.unsqueeze(0)
    if stacked.ndim != 4:
        raise ValueError(
            f"{case}: {name} has shape {tuple(volume.shape)}, expected (X, Y, Z) or (C, X, Y, Z)"
        )
    check_same_grid(image, stacked, name, case)
    plain = stacked.as_subclass(Tensor)
    if len(plain) == 1:
        return plain[0]
    if name not in DIRECTIONS or len(plain) % 3:
        raise ValueError(f"{case}: {name} has {len(plain)} volumes, expected 1, or 3 for each peak")
    return plain
