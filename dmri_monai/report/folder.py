"""Cases of a report from files: labels or peaks in an output folder, scans and ground truth in a BIDS data set."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.metrics import DiceHelper
from torch import Tensor

from dmri_monai.io import read_nifti
from dmri_monai.io.nifti import nifti_stem
from dmri_monai.metrics import AngularError
from dmri_monai.report.case import Case

__all__ = ["case_from_files", "cases_from_folder", "read_class_names"]

Shown = Callable[[Tensor], Tensor]


def case_from_files(
    scan: str | Path,
    prediction: str | Path | None = None,
    truth: str | Path | None = None,
    *,
    name: str | None = None,
    class_names: Mapping[int, str] | None = None,
    reader: Mapping[str, Any] | None = None,
    shown: Shown | None = None,
) -> Case:
    """Case of a DWI file with sidecars and NIfTI maps of labels, or of peaks (3n volumes, x y z each, world frame).

    Where both maps are given: Dice per class, or the angle between the largest peaks.  An uncertainty beside the
    prediction (`<prediction>uncertainty.nii.gz`) is shown.  reader: options of :func:`dmri_monai.io.read_dwi`.
    shown: makes labels or peaks of maps that hold anything else.
    """
    scan = Path(scan)
    found, true = (None if p is None else _read_map(p, shown) for p in (prediction, truth))
    names = dict(class_names or {})
    return Case(
        name or scan.name.split(".")[0],
        scan,
        prediction=found,
        truth=true,
        class_names=names,
        metrics=_metrics(found, true, names),
        maps={} if prediction is None else _uncertainty(Path(prediction)),
        reader=dict(reader or {}),
    )


def cases_from_folder(
    outputs: str | Path,
    data: str | Path,
    *,
    suffix: str = "dseg",
    reader: Mapping[str, Any] | None = None,
    shown: Shown | None = None,
) -> list[Case]:
    """One case for each `<name>_<suffix>.nii.gz` in `outputs`.

    Its scan is `<name>_dwi.nii.gz` anywhere below `data`; its ground truth, if any, is the file of the prediction's
    name below `data`.  Class names come from `<suffix>.tsv` in `outputs`.  reader, shown: as of
    :func:`case_from_files`.  Raises FileNotFoundError.
    """
    outputs, data = Path(outputs), Path(data)
    predictions = sorted(outputs.glob(f"*_{suffix}.nii.gz"))
    if not predictions:
        raise FileNotFoundError(f"no *_{suffix}.nii.gz in {outputs}")
    names = read_class_names(outputs / f"{suffix}.tsv")
    cases = []
    for prediction in predictions:
        name = prediction.name.removesuffix(f"_{suffix}.nii.gz")
        scan = _find(data, f"{name}_dwi.nii.gz", outputs) or _find(data, f"{name}_dwi.nii", outputs)
        if scan is None:
            raise FileNotFoundError(f"no {name}_dwi.nii.gz for {prediction} below {data}")
        truth = _find(data, prediction.name, outputs)
        told: dict[str, Any] = {"name": name, "class_names": names, "reader": reader, "shown": shown}
        cases.append(case_from_files(scan, prediction, truth, **told))
    return cases


def read_class_names(path: str | Path) -> dict[int, str]:
    """Names by label of a BIDS look-up table (.tsv with the columns index and name); empty without the file."""
    path = Path(path)
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    try:
        return {int(row["index"]): str(row["name"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"expected the columns index (a number) and name in {path}") from error


def _find(folder: Path, name: str, apart_from: Path) -> Path | None:
    inside = apart_from.resolve()
    found = sorted(p for p in folder.rglob(name) if inside not in p.resolve().parents)
    if len(found) > 1:
        raise ValueError(f"{name} exists {len(found)} times below {folder}, expected once")
    return found[0] if found else None


def _read_map(path: str | Path, shown: Shown | None) -> Tensor:
    """(1, X, Y, Z) integer labels or (3n, X, Y, Z) peaks."""
    volume: Tensor = read_nifti(path)
    if shown is not None:
        drawn = shown(volume.as_subclass(Tensor))
        volume = drawn[None] if drawn.ndim == 3 else drawn
    if len(volume) == 1:
        return volume.round().to(torch.int64)
    if len(volume) % 3:
        raise ValueError(f"map has {len(volume)} volumes, expected 1 (labels) or 3 per peak: {path}")
    return volume


def _uncertainty(prediction: Path) -> dict[str, Tensor]:
    path = prediction.with_name(f"{nifti_stem(prediction)}uncertainty.nii.gz")
    return {"Uncertainty": read_nifti(path)} if path.is_file() else {}


def _metrics(prediction: Tensor | None, truth: Tensor | None, names: Mapping[int, str]) -> dict[str, float]:
    if prediction is None or truth is None:
        return {}
    if prediction.shape[1:] != truth.shape[1:] or (len(prediction) == 1) != (len(truth) == 1):
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} differ in shape"
        )
    found, true = (torch.as_tensor(v).as_subclass(Tensor)[None] for v in (prediction, truth))
    return _dice(found, true, names) if len(truth) == 1 else _angles(found, true)


def _angles(prediction: Tensor, truth: Tensor) -> dict[str, float]:
    """Of peaks (1, 3n, X, Y, Z): what a report says of the angle between the first ones."""
    median, share = AngularError()(prediction, truth)[0].tolist()
    return {"Median angle (°)": median, "Share below 10°": share}


def _dice(prediction: Tensor, truth: Tensor, names: Mapping[int, str]) -> dict[str, float]:
    count = int(max(prediction.max(), truth.max())) + 1
    if count < 2:
        return {}
    helper = DiceHelper(include_background=False, num_classes=count, reduction="none", get_not_nans=False)
    values = helper(prediction, truth)[0].tolist()
    return {f"Dice {names.get(i, f'class {i}')}": value for i, value in enumerate(values, start=1)}
