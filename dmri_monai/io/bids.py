"""Scans of a BIDS data set, raw or derivative, as items: dictionaries of strings.

`image`, `subject`, `session`, `run` ("" where there is none), and paths of labels and `mask`. Paths are found by name
alone; nothing is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

from dmri_monai.io.bids_names import Filters, entities_of, matches
from dmri_monai.io.nifti import SUFFIXES, is_nifti, nifti_stem
from dmri_monai.io.present import folders, present

__all__ = ["data_list", "is_bids"]

Missing = Literal["error", "skip", "drop"]
PHASE_PARTS = ("phase", "real", "imag")  # only magnitudes follow the signal models
LEFT_OUT = (("desc",), ("desc", "part"))  # entities of the image that its labels do not have


def is_bids(root: Path) -> bool:
    """Whether `root` holds `sub-<label>` folders, as raw data sets and derivatives do."""
    return bool(folders(root, "sub-"))


def data_list(
    root: str | Path,
    *,
    derivatives: str | Path | None = None,
    labels: Mapping[str, str | Sequence[str]] | None = None,
    mask: str = "desc-brain_mask",
    missing: Missing = "error",
    filters: Filters | None = None,
    keep: Callable[[Path], bool] | None = None,
) -> list[dict[str, str]]:
    """Items of every `sub-*/[ses-*/]dwi/*_dwi.nii[.gz]` under `root`, sorted: one for each session and run.

    root: a raw data set, or a folder of derivatives such as QSIPrep's (`*_desc-preproc_dwi.nii.gz`).
    labels: key of the item -> file ending, e.g. {"label": "dseg"} for `sub-01_dseg.nii.gz`, or several, of which the
    first counts that is there. They and the
    brain `mask` (added where it exists) are looked for in the same sub-folder of `derivatives` (a folder, or
    a name under `root/derivatives`; by default every one of those) and beside the image. missing: a label
    that does not exist is an "error", or its key is left out ("skip"), or its scan is ("drop").
    filters: entity -> value or values, e.g. {"dir": "AP"}; None: scans without that entity.
    keep: which images to take, asked for those that pass the filters, before their labels are looked for.
    A link that leads nowhere is listed as an image, and an error as a label or mask.  Raises ValueError or OSError
    naming the folder or the file.
    """
    if missing not in ("error", "skip", "drop"):
        raise ValueError(f"missing is {missing!r}, expected 'error', 'skip' or 'drop'")
    root = _folder(root)
    places = _derivative_folders(root, derivatives)
    items = []
    for image in filter(keep, _filtered(_images(root), filters or {}, root)):
        item, lacking = _item(image, root, places, {**(labels or {}), "mask": mask})
        lacking.pop("mask", None)
        if lacking and missing == "error":
            name = next(iter(lacking.values()))
            raise FileNotFoundError(f"no {name} for {image} in {', '.join(map(str, places)) or root}")
        if not (lacking and missing == "drop"):
            items.append(item)
    if not items:
        wanted = (
            ", ".join(" or ".join(_endings(label)) for label in (labels or {}).values())
            or "diffusion weighting"
        )
        raise ValueError(f"no scan with {wanted} in {root}")
    return items


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
    subjects = folders(root, "sub-")
    if not subjects:
        raise ValueError(f"no sub-<label> folder in {root}")
    levels = [level for subject in subjects for level in (subject, *folders(subject, "ses-"))]
    names = [path for level in levels for dwi in folders(level, "dwi") for path in _named_dwi(dwi)]
    images = [p for p in names if entities_of(nifti_stem(p)).get("part") not in PHASE_PARTS]
    if not images:
        raise ValueError(f"no sub-*/[ses-*/]dwi/*_dwi.nii.gz in {root}")
    images.sort(key=lambda path: path.relative_to(root).parts)
    for one, other in pairwise(images):
        if one.with_name(nifti_stem(one)) == other.with_name(nifti_stem(other)):
            raise ValueError(f"both {one} and {other.name} are there, expected one")
    return images


def _named_dwi(folder: Path) -> list[Path]:
    if folder.name != "dwi":
        return []
    names = [path for path in folder.iterdir() if path.name.startswith("sub-") and is_nifti(path)]
    return [path for path in names if nifti_stem(path).endswith("_dwi")]


def _filtered(images: Sequence[Path], filters: Filters, root: Path) -> list[Path]:
    entities = [entities_of(nifti_stem(image)) for image in images]
    found = [image for image, own in zip(images, entities, strict=True) if matches(own, filters)]
    if not found:
        known = sorted({f"{k}-{v}" for own in entities for k, v in own.items() if k not in ("sub", "ses")})
        raise ValueError(
            f"no scan passes the filters {dict(filters)} in {root}; there are {', '.join(known)}"
        )
    return found


def _item(
    image: Path, root: Path, places: Sequence[Path], wanted: Mapping[str, str | Sequence[str]]
) -> tuple[dict[str, str], dict[str, str]]:
    """The item of `image`, and the file names of what is `wanted` (key -> ending) and not there."""
    folder = image.parent.relative_to(root)
    entities = entities_of(nifti_stem(image))
    for key, level in zip(("sub", "ses"), folder.parts[:-1], strict=False):
        if entities.get(key) != level.removeprefix(f"{key}-"):
            raise ValueError(f"file name says {key}-{entities.get(key)}, folder {level}: {image}")
    item = {"image": str(image), "subject": entities["sub"]}
    item |= {"session": entities.get("ses", ""), "run": entities.get("run", "")}
    lacking = {}
    bases = ["_".join(f"{k}-{v}" for k, v in entities.items() if k not in left) for left in LEFT_OUT]
    for key, label in wanted.items():
        stems = [f"{base}_{ending}" for ending in _endings(label) for base in dict.fromkeys(bases)]
        path = _companion([*(place / folder for place in places), image.parent], stems)
        if path:
            item[key] = str(path)
        else:
            lacking[key] = f"{stems[0]}.nii.gz"
    return item, lacking


def _endings(label: str | Sequence[str]) -> list[str]:
    return [label] if isinstance(label, str) else list(label)


def _companion(places: Sequence[Path], stems: Sequence[str]) -> Path | None:
    """The file of the first of `stems` that has one."""
    for stem in stems:
        found = [path for place in places for end in SUFFIXES if (path := present(place / f"{stem}{end}"))]
        if len(found) > 1:
            raise ValueError(
                f"both {found[0]} and {found[1]} are there, expected one: name the derivatives folder"
            )
        if found:
            return found[0]
    return None
