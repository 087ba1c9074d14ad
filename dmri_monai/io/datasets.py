"""From a folder to the lists of items that bundle configs train on, evaluate and infer."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from dmri_monai.flags import flag
from dmri_monai.io import bids
from dmri_monai.io.nifti import open_nifti
from dmri_monai.io.sidecars import find_sidecars

__all__ = ["sample_subjects", "scans", "subjects"]

Layout = Literal["bids", "hcp"]


def subjects(
    dataset_dir: str | Path,
    fractions: Mapping[str, float],
    seed: int = 0,
    labels: Mapping[str, str] | None = None,
    *,
    masked: bool = False,
    layout: Layout = "bids",
    fold: int | None = None,
    n_folds: int = 7,
) -> dict[str, list[dict[str, Any]]]:
    """Items of a data set, split by subject: name of the part -> items with `image` and the paths of `labels`.

    fractions: part -> share of the subjects, e.g. {"train": 0.6, "val": 0.2, "test": 0.2}.
    labels: key of the item -> suffix of the derivative, e.g. {"label": "dseg"}; scans without them are an error.
    masked: items also get the path of their brain `mask`; scans without one are an error.
    layout: "bids", or "hcp" (`<subject>/T1w/Diffusion`, without labels).
    fold: part of a cross-validation of `n_folds` instead of `fractions`; the subjects then stay in sorted order.
    Asking the result for a part that there is not raises ValueError naming those there are.
    """
    items = _items(dataset_dir, layout, dict(labels or {}))
    if flag("masked", masked):
        lacking = [item["image"] for item in items if "mask" not in item]
        if lacking:
            raise FileNotFoundError(f"no brain mask for {len(lacking)} scans; first {lacking[0]}")
    else:
        items = [{key: value for key, value in item.items() if key != "mask"} for item in items]
    if fold is not None:
        return _Parts(bids.split_fold(items, fold, n_folds, seed=None))
    return _Parts(bids.split(items, fractions, seed=seed))


class _Parts(dict[str, list[dict[str, Any]]]):
    def __missing__(self, name: str) -> list[dict[str, Any]]:
        raise ValueError(f"the split has no part {name!r}, only {', '.join(self)}")


def _items(dataset_dir: str | Path, layout: Layout, labels: dict[str, str]) -> list[dict[str, Any]]:
    if layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}, expected one of {get_args(Layout)}")
    if layout == "bids":
        return bids.data_list(dataset_dir, labels=labels)
    if labels:
        raise ValueError(
            f"layout 'hcp' has no labels, but {sorted(labels.values())} are needed: {dataset_dir}"
        )
    return bids.hcp_list(dataset_dir)


def scans(path: str | Path, label: str | None = None) -> list[dict[str, Any]]:
    """Items to infer: one scan file, or every DWI of a folder (BIDS, HCP, or a plain folder of scans with sidecars).

    label: suffix of a derivative that is the truth, e.g. "dseg"; where a scan has it, the item gets its `label_path`.
    HCP's scans, which all have one name, get their `subject`.
    """
    path = Path(path)
    if path.is_file():
        return [{"image": str(path)}]
    if not path.is_dir():
        raise ValueError(f"there is no scan or folder {path}")
    if any(entry.is_dir() for entry in path.glob("sub-*")):
        return _bids_scans(path, label)
    if any(path.glob("*/T1w/Diffusion")):
        return [{"image": item["image"], "subject": item["subject"]} for item in bids.hcp_list(path)]
    found = [f for f in sorted(path.iterdir()) if f.name.endswith((".nii", ".nii.gz")) and _is_scan(f)]
    if not found:
        raise ValueError(f"no diffusion scan (NIfTI with .bval and .bvec) in {path}")
    return [{"image": str(f)} for f in found]


def _bids_scans(path: Path, label: str | None) -> list[dict[str, Any]]:
    items = []
    for item in bids.data_list(path, labels={"label_path": label} if label else {}, missing="skip"):
        items.append({k: v for k, v in item.items() if k in ("image", "label_path") and v})
    return items


def _is_scan(path: Path) -> bool:
    """Whether a gradient table lies beside a 4-D image: the mask beside HCP's bvals has three axes."""
    try:
        find_sidecars(path)
    except (FileNotFoundError, ValueError):
        return False
    return len(open_nifti(path).shape) == 4


def sample_subjects(
    items: Sequence[Mapping[str, Any]], count: int | None = None, seed: int = 0
) -> list[Mapping[str, Any]]:
    """All items of `count` subjects drawn by `seed`, in the order given; of everybody for None.

    An item without `subject` is one of its own.  Of one seed, a smaller draw lies within every larger one.
    ValueError when there are fewer subjects.
    """
    owners = [str(item.get("subject", item["image"])) for item in items]
    names = sorted(set(owners))
    if count is not None and not 0 < count <= len(names):
        raise ValueError(f"asked for {count} subjects, there are {len(names)}")
    random.Random(seed).shuffle(names)
    return [item for item, owner in zip(items, owners, strict=True) if owner in names[:count]]
