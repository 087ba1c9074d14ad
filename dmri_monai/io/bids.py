"""From a data set on disk to lists of items: BIDS folders, HCP folders, and splits by subject.

Items are dictionaries of strings: `image`, `subject`, `session`, `run` ("" where there is none), and paths of
labels and `mask`. Paths are found by name alone; nothing is opened.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

__all__ = ["data_list", "hcp_list", "split", "split_fold"]

Item = TypeVar("Item", bound=Mapping[str, Any])
Missing = Literal["error", "skip", "drop"]
SUFFIXES = (".nii.gz", ".nii")
PHASE_PARTS = ("phase", "real", "imag")  # only magnitudes follow the signal models


def data_list(
    root: str | Path,
    *,
    derivatives: str | Path | None = None,
    labels: Mapping[str, str] | None = None,
    mask: str = "desc-brain_mask",
    missing: Missing = "error",
) -> list[dict[str, str]]:
    """Items of every `sub-*/[ses-*/]dwi/*_dwi.nii[.gz]` under `root`, sorted: one for each session and run.

    labels: key of the item -> file ending, e.g. {"label": "dseg"} for `sub-01_dseg.nii.gz`. They and the
    brain `mask` (added where it exists) are looked for in the same sub-folder of `derivatives` (a folder, or
    a name under `root/derivatives`; by default every one of those) and beside the image. missing: a label
    that does not exist is an "error", or its key is left out ("skip"), or its scan is ("drop"). Raises
    ValueError or OSError naming the folder or the file.
    """
    if missing not in ("error", "skip", "drop"):
        raise ValueError(f"missing is {missing!r}, expected 'error', 'skip' or 'drop'")
    root = _folder(root)
    places = _derivative_folders(root, derivatives)
    items = []
    for image in _images(root):
        item, lacking = _item(image, root, places, {**(labels or {}), "mask": mask})
        lacking.pop("mask", None)
        if lacking and missing == "error":
            name = next(iter(lacking.values()))
            raise FileNotFoundError(f"no {name} for {image} in {', '.join(map(str, places)) or root}")
        if not (lacking and missing == "drop"):
            items.append(item)
    if not items:
        raise ValueError(f"no scan with {', '.join((labels or {}).values())} in {root}")
    return items


def hcp_list(root: str | Path) -> list[dict[str, str]]:
    """Items of `<subject>/T1w/Diffusion/` folders (data.nii.gz, bvals, bvecs, nodif_brain_mask.nii.gz), sorted.

    Folders without T1w/Diffusion are passed over; one that lacks its data is an error naming the file.
    """
    root = _folder(root)
    items = []
    for folder in sorted(root.glob("*/T1w/Diffusion")):
        for name in ("data.nii.gz", "bvals", "bvecs"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no {name} in {folder}")
        item = {"image": str(folder / "data.nii.gz"), "subject": folder.parts[-3], "session": "", "run": ""}
        mask = folder / "nodif_brain_mask.nii.gz"
        items.append({**item, "mask": str(mask)} if mask.is_file() else item)
    if not items:
        raise ValueError(f"no <subject>/T1w/Diffusion folder in {root}")
    return items


def split(items: Sequence[Item], fractions: Mapping[str, float], *, seed: int = 0) -> dict[str, list[Item]]:
    """Parts of `items` by subject, never by run: name -> items, in the order given.

    fractions: name -> share of the subjects, summing to 1, e.g. {"train": 0.6, "val": 0.2, "test": 0.2}; a
    share above 0 gets at least one subject. The draw depends on the set of subjects and `seed` alone, not on
    the order of items.
    """
    if not fractions or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions are {dict(fractions)}, expected shares of at least 0 that sum to 1")
    subjects = _shuffled_subjects(items, seed)
    sizes = _sizes(len(subjects), fractions)
    bounds = iter(subjects)
    return _by_subject(items, {name: {next(bounds) for _ in range(size)} for name, size in sizes.items()})


def split_fold(
    items: Sequence[Item], fold: int, n_folds: int, *, seed: int | None = 0
) -> dict[str, list[Item]]:
    """Parts "train", "val" and "test" of fold 0 ... n_folds - 1 of a cross-validation by subject.

    Fold k tests on the k-th group of subjects, validates on the next (cyclic) and trains on the others;
    groups differ by at most one subject. seed=None keeps subjects in sorted order instead of shuffling them.
    """
    subjects = _shuffled_subjects(items, seed)
    if not 3 <= n_folds <= len(subjects):
        raise ValueError(f"n_folds is {n_folds} for {len(subjects)} subjects, expected 3 to {len(subjects)}")
    if not 0 <= fold < n_folds:
        raise ValueError(f"fold is {fold}, expected 0 to {n_folds - 1}")
    cuts = [len(subjects) * k // n_folds for k in range(n_folds + 1)]
    groups = [set(subjects[a:b]) for a, b in pairwise(cuts)]
    test, val = groups[fold], groups[(fold + 1) % n_folds]
    return _by_subject(items, {"train": set(subjects) - test - val, "val": val, "test": test})


def _folder(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise NotADirectoryError(f"there is no folder {root}")
    return root


def _derivative_folders(root: Path, derivatives: str | Path | None) -> list[Path]:
    if derivatives is None:
        return sorted(path for path in root.glob("derivatives/*") if path.is_dir())
    named = root / "derivatives" / derivatives  # an absolute path replaces what is before it
    return [named if named.is_dir() else _folder(derivatives)]


def _images(root: Path) -> list[Path]:
    if not any(root.glob("sub-*")):
        raise ValueError(f"no sub-<label> folder in {root}")
    found = [
        path for depth in ("sub-*/dwi", "sub-*/ses-*/dwi") for path in root.glob(f"{depth}/sub-*_dwi.nii*")
    ]
    images = [p for p in found if p.name.endswith(SUFFIXES) and _entities(p).get("part") not in PHASE_PARTS]
    if not images:
        raise ValueError(f"no sub-*/[ses-*/]dwi/*_dwi.nii.gz in {root}")
    images.sort(key=lambda path: path.relative_to(root).parts)
    for one, other in pairwise(images):
        if one.with_name(_stem(one)) == other.with_name(_stem(other)):
            raise ValueError(f"both {one} and {other.name} are there, expected one")
    return images


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")


def _entities(path: Path) -> dict[str, str]:
    return {key: value for key, _, value in (pair.partition("-") for pair in _stem(path).split("_")[:-1])}


def _item(
    image: Path, root: Path, places: Sequence[Path], wanted: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The item of `image`, and the file names of what is `wanted` (key -> ending) and not there."""
    folder = image.parent.relative_to(root)
    entities = _entities(image)
    for key, level in zip(("sub", "ses"), folder.parts[:-1], strict=False):
        if entities.get(key) != level.removeprefix(f"{key}-"):
            raise ValueError(f"file name says {key}-{entities.get(key)}, folder {level}: {image}")
    item = {"image": str(image), "subject": entities["sub"]}
    item |= {"session": entities.get("ses", ""), "run": entities.get("run", "")}
    lacking = {}
    base = "_".join(f"{key}-{value}" for key, value in entities.items() if key != "desc")
    for key, ending in wanted.items():
        path = _companion([*(place / folder for place in places), image.parent], f"{base}_{ending}")
        if path:
            item[key] = str(path)
        else:
            lacking[key] = f"{base}_{ending}.nii.gz"
    return item, lacking


def _companion(folders: Sequence[Path], stem: str) -> Path | None:
    paths = [folder / f"{stem}{suffix}" for folder in folders for suffix in SUFFIXES]
    found = [path for path in paths if path.is_file()]
    if len(found) > 1:
        raise ValueError(
            f"both {found[0]} and {found[1]} are there, expected one: name the derivatives folder"
        )
    return found[0] if found else None


def _shuffled_subjects(items: Sequence[Item], seed: int | None) -> list[str]:
    subjects = sorted({str(item["subject"]) for item in items})
    if seed is not None:
        random.Random(seed).shuffle(subjects)
    return subjects


def _sizes(count: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers nearest to the shares (largest remainders), one at least for a share above 0."""
    wanted = {name: share for name, share in fractions.items() if share > 0}
    if count < len(wanted):
        raise ValueError(f"{count} subjects cannot be split into {len(wanted)} parts: {dict(fractions)}")
    sizes = {name: max(1, int(count * share + 1e-9)) if share > 0 else 0 for name, share in fractions.items()}
    while sum(sizes.values()) != count:
        step = 1 if sum(sizes.values()) < count else -1
        able = [name for name in wanted if step > 0 or sizes[name] > 1]
        sizes[max(able, key=lambda name: step * (count * wanted[name] - sizes[name]))] += step
    return sizes


def _by_subject(items: Sequence[Item], parts: Mapping[str, set[str]]) -> dict[str, list[Item]]:
    return {
        name: [item for item in items if str(item["subject"]) in chosen] for name, chosen in parts.items()
    }
