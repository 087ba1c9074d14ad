"""From a folder to the lists of items that bundle configs train on, evaluate and infer."""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from dmri_monai.flags import flag
from dmri_monai.gradients import B0_THRESHOLD
from dmri_monai.io.bids import Missing, data_list, is_bids
from dmri_monai.io.bids_names import Filters, entities_of, matches, parse_filters
from dmri_monai.io.hcp import hcp_list
from dmri_monai.io.nifti import is_nifti, nifti_stem, open_nifti
from dmri_monai.io.present import NotFetchedError, present, required
from dmri_monai.io.sidecars import any_sidecars
from dmri_monai.io.splits import split, split_fold

__all__ = ["sample_subjects", "scans", "subjects"]

logger = logging.getLogger(__name__)

Layout = Literal["bids", "hcp"]


def subjects(  # noqa: PLR0913  the keys of a config that choose the data
    dataset_dir: str | Path,
    fractions: Mapping[str, float],
    seed: int = 0,
    labels: Mapping[str, str | Sequence[str]] | None = None,
    *,
    masked: bool = False,
    layout: Layout = "bids",
    fold: int | None = None,
    n_folds: int = 7,
    filters: Filters | str | None = None,
    b0_threshold: float = B0_THRESHOLD,
    labelled_only: bool = False,
) -> dict[str, list[dict[str, Any]]]:
    """Items of a data set, split by subject: name of the part -> items with `image` and the paths of `labels`.

    fractions: part -> share of the subjects, e.g. {"train": 0.6, "val": 0.2, "test": 0.2}.
    labels: key of the item -> suffix of the derivative, e.g. {"label": "dseg"}, or several, of which the first counts
        that is there; scans without them are an error, or left out with a line in the log where `labelled_only` is
        true.
    masked: items also get the path of their brain `mask`; scans without one are an error.
    layout: "bids", or "hcp" (`<subject>/T1w/Diffusion`, without labels).
    fold: part of a cross-validation of `n_folds` instead of `fractions`; the subjects then stay in sorted order.
    filters: entity -> value or values, e.g. {"dir": "AP"}, or text such as "dir=AP,run=1".
    Runs without diffusion weighting (reverse-phase b0: no b above `b0_threshold`) are left out, with a line in the log.
    A scan or table that has not been fetched is an error here, before anything is trained.
    Asking the result for a part that there is not raises ValueError naming those there are.
    """
    wanted, only = dict(labels or {}), flag("labelled_only", labelled_only)
    items = _items(dataset_dir, layout, wanted, _filters(filters), b0_threshold, "skip" if only else "error")
    items = _labelled(items, wanted, dataset_dir) if only else items
    if flag("masked", masked):
        lacking = [item["image"] for item in items if "mask" not in item]
        if lacking:
            raise FileNotFoundError(f"no brain mask for {len(lacking)} scans; first {lacking[0]}")
    else:
        items = [{key: value for key, value in item.items() if key != "mask"} for item in items]
    if fold is not None:
        return _Parts(split_fold(items, fold, n_folds, seed=None))
    return _Parts(split(items, fractions, seed=seed))


def _labelled(
    items: list[dict[str, Any]], labels: Mapping[str, str | Sequence[str]], dataset_dir: str | Path
) -> list[dict[str, Any]]:
    """The items that have all their `labels`; how many have not is logged."""
    found = [item for item in items if all(key in item for key in labels)]
    ending = ", ".join(one if isinstance(one, str) else " or ".join(one) for one in labels.values())
    if not found:
        raise ValueError(f"no scan with {ending} in {dataset_dir}")
    if len(found) < len(items):
        logger.warning(
            "%d of %d scans have no %s and are left out", len(items) - len(found), len(items), ending
        )
    return found


class _Parts(dict[str, list[dict[str, Any]]]):
    def __missing__(self, name: str) -> list[dict[str, Any]]:
        raise ValueError(f"the split has no part {name!r}, only {', '.join(self)}")


def _items(
    dataset_dir: str | Path,
    layout: Layout,
    labels: dict[str, str | Sequence[str]],
    filters: Filters,
    b0_threshold: float,
    missing: Missing,
) -> list[dict[str, Any]]:
    if layout not in get_args(Layout):
        raise ValueError(f"layout is {layout!r}, expected one of {get_args(Layout)}")
    if layout == "bids":
        weighted = functools.partial(_is_weighted, b0_threshold=b0_threshold)
        return [*data_list(dataset_dir, labels=labels, missing=missing, filters=filters, keep=weighted)]
    if labels:
        raise ValueError(f"layout 'hcp' has no labels, but {list(labels.values())} are needed: {dataset_dir}")
    return _hcp_items(dataset_dir, filters)


def _hcp_items(dataset_dir: str | Path, filters: Filters) -> list[dict[str, Any]]:
    items = [item for item in hcp_list(dataset_dir) if matches({"sub": item["subject"]}, filters)]
    if not items:
        raise ValueError(f"no subject passes the filters {dict(filters)} in {dataset_dir}")
    return [*items]


def _filters(filters: Filters | str | None) -> Filters:
    return parse_filters(filters) if isinstance(filters, str) and filters else filters or {}  # type: ignore[return-value]


def _is_weighted(image: Path, b0_threshold: float) -> bool:
    """Whether a scan has diffusion weighting; where not, that it is left out is logged.  Raises where none can tell."""
    required(image)
    highest = _highest_bval(image)
    if highest > b0_threshold:
        return True
    logger.warning(
        "%s has no diffusion weighting and is left out: its highest b is %g, b0_threshold is %g",
        image,
        highest,
        b0_threshold,
    )
    return False


def _highest_bval(image: Path) -> float:
    """The highest b-value (s/mm²) of a scan; 0 of a single volume without a table."""
    try:
        sidecars = any_sidecars(image)
    except NotFetchedError:
        raise
    except FileNotFoundError:
        shape = open_nifti(image).shape
        if len(shape) == 3 or (len(shape) == 4 and shape[3] == 1):
            return 0.0
        raise
    return float(sidecars.read_bvals().max())


def scans(
    path: str | Path,
    label: str | None = None,
    *,
    filters: Filters | str | None = None,
    b0_threshold: float = B0_THRESHOLD,
) -> list[dict[str, Any]]:
    """Items to infer: one scan file, or every DWI of a folder (BIDS, HCP, or a plain folder of scans with sidecars).

    label: suffix of a derivative that is the truth, e.g. "dseg"; where a scan has it, the item gets its `label_path`.
    HCP's scans, which all have one name, get their `subject`.  filters, b0_threshold: as of :func:`subjects`; runs
    without diffusion weighting are left out of a folder, with a line in the log.  A scan that cannot be read stays in
    the list, so that its own error is raised when its turn comes.
    """
    path, wanted = Path(path), _filters(filters)
    if not path.is_dir():
        if present(path) is None:
            raise ValueError(f"there is no scan or folder {path}")
        return [{"image": str(path)}]
    if is_bids(path):
        return _bids_scans(path, label, wanted, b0_threshold)
    if any(path.glob("*/T1w/Diffusion")):
        return [{"image": item["image"], "subject": item["subject"]} for item in _hcp_items(path, wanted)]
    named = [f for f in sorted(path.iterdir()) if is_nifti(f) and matches(entities_of(nifti_stem(f)), wanted)]
    found = [f for f in named if _is_scan(f) and _may_predict(f, b0_threshold)]
    if not found:
        passing = f" passes the filters {dict(wanted)}" if wanted else ""
        raise ValueError(f"no diffusion scan (NIfTI with .bval and .bvec){passing} in {path}")
    return [{"image": str(f)} for f in found]


def _bids_scans(path: Path, label: str | None, filters: Filters, b0_threshold: float) -> list[dict[str, Any]]:
    items = data_list(
        path,
        labels={"label_path": label} if label else {},
        missing="skip",
        filters=filters,
        keep=lambda image: _may_predict(image, b0_threshold),
    )
    return [{k: v for k, v in item.items() if k in ("image", "label_path") and v} for item in items]


def _may_predict(image: Path, b0_threshold: float) -> bool:
    """As `_is_weighted`; true where none can tell, so that reading the scan says what is wrong."""
    try:
        return _is_weighted(image, b0_threshold)
    except (ValueError, OSError):
        return True


def _is_scan(path: Path) -> bool:
    """Whether a gradient table lies beside a 4-D image: the mask beside HCP's bvals has three axes."""
    try:
        any_sidecars(path)
        return len(open_nifti(path).shape) == 4
    except NotFetchedError:
        return True
    except FileNotFoundError:
        return False
    except (ValueError, OSError):  # it is one that cannot be read, which must not be passed over
        return True


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
