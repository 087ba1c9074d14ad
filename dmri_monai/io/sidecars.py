"""Find the files that belong to an image: same stem, BIDS inheritance, HCP names, MRtrix table."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from dmri_monai.io.nifti import nifti_stem

__all__ = ["Sidecars", "find_sidecars", "inherited"]

logger = logging.getLogger(__name__)

BvecsChoice = Literal["auto", "eddy"]


@dataclass(frozen=True)
class Sidecars:
    """`bval` and `bvec` (FSL frame), or `mrtrix` (scanner frame); JSON files from general to specific."""

    bval: Path | None
    bvec: Path | None
    mrtrix: Path | None
    json: tuple[Path, ...]


def find_sidecars(image: Path, bvecs: BvecsChoice = "auto") -> Sidecars:
    """Sidecars of `image`: same stem, then BIDS inheritance, then the names bvals/bvecs; links are followed.

    `<stem>.eddy_rotated_bvecs` replaces the b-vectors with bvecs="eddy"; otherwise its presence is logged.
    """
    if bvecs not in ("auto", "eddy"):
        raise ValueError(f"bvecs is {bvecs!r}, expected 'auto' or 'eddy' for {image}")
    places = [image] if image.resolve() == image.absolute() else [image, image.resolve()]
    for place in places:
        found = _beside(place, bvecs)
        if found.mrtrix or (found.bval and found.bvec):
            return found
    raise FileNotFoundError(_missing(image, _beside(image, bvecs), bvecs))


def _beside(image: Path, bvecs: BvecsChoice) -> Sidecars:
    stem = nifti_stem(image)
    bval = _nearest(image, stem, "bval")
    bvec = _nearest(image, stem, "bvec")
    mrtrix = _existing(image.with_name(f"{stem}.b"))
    eddy = _existing(image.with_name(f"{stem}.eddy_rotated_bvecs"))
    if bvecs == "eddy":
        bvec, mrtrix = eddy, None
    elif eddy:
        logger.warning("%s is present and not used; pass bvecs='eddy' to use it", eddy)
    if mrtrix and bval and bvec:
        logger.warning("%s is present and not used: %s and %s are", mrtrix, bval, bvec)
        mrtrix = None
    return Sidecars(bval, bvec, mrtrix, inherited(image, "json"))


def _nearest(image: Path, stem: str, kind: str) -> Path | None:
    same_stem = [
        p for p in (image.with_name(f"{stem}.{kind}"), image.with_name(f"{stem}.{kind}s")) if p.is_file()
    ]
    if len(same_stem) > 1:
        raise ValueError(
            f"both {same_stem[0].name} and {same_stem[1].name} are there, expected one for {image}"
        )
    if same_stem:
        return same_stem[0]
    levels = inherited(image, kind)
    return levels[-1] if levels else _existing(image.with_name(f"{kind}s"))


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _missing(image: Path, found: Sidecars, bvecs: BvecsChoice) -> str:
    stem = nifti_stem(image)
    if bvecs == "eddy" and not found.bvec:
        return f"no {stem}.eddy_rotated_bvecs beside {image}"
    lacking = [kind for kind, path in (("b-values", found.bval), ("b-vectors", found.bvec)) if path is None]
    message = (
        f"no {' and no '.join(lacking)} for {image}: no {stem}.bval/.bvec, {stem}.b, BIDS table, bvals/bvecs"
    )
    if bvecs == "auto" and image.with_name(f"{stem}.eddy_rotated_bvecs").is_file():
        message += f"; {stem}.eddy_rotated_bvecs is there: pass bvecs='eddy'"
    return message


def inherited(image: Path, extension: str) -> tuple[Path, ...]:
    """Files with `extension` that apply to `image` by BIDS inheritance, general to specific.

    A file applies when its suffix is the image's and its entities are among the image's; the data set ends at
    the folder that holds the `sub-<label>` folder. Two equally specific files in one folder are an error. An
    image whose name is not made of BIDS entities has only the file of its own stem.
    """
    stem = nifti_stem(image)
    own = _entities(stem)
    if own is None:
        path = image.with_name(f"{stem}.{extension}")
        return (path,) if path.is_file() else ()
    return tuple(
        path
        for folder in _levels(image.absolute().parent)
        for path in _applying(folder, own, extension, image)
    )


def _applying(folder: Path, own: tuple[frozenset[str], str], extension: str, image: Path) -> list[Path]:
    found: list[tuple[int, Path]] = []
    for path in sorted(folder.glob(f"*.{extension}")):
        theirs = _entities(path.name.removesuffix(f".{extension}"))
        if theirs and theirs[1] == own[1] and theirs[0] <= own[0] and path.is_file():
            found.append((len(theirs[0]), path))
    found.sort()
    for (one, first), (other, second) in pairwise(found):
        if one == other:
            raise ValueError(f"both {first} and {second} apply to {image}, expected one")
    return [path for _, path in found]


def _levels(folder: Path) -> list[Path]:
    chain = [folder, *folder.parents]
    for depth, level in enumerate(chain[:-1]):
        if level.name.startswith("sub-"):
            return chain[depth + 1 :: -1]
    return [folder]


def _entities(stem: str) -> tuple[frozenset[str], str] | None:
    *pairs, suffix = stem.split("_")
    return (frozenset(pairs), suffix) if all(re.fullmatch(r"[^-]+-.+", pair) for pair in pairs) else None
