"""Find the files that belong to an image: same stem, BIDS inheritance, HCP names, MRtrix table, JSON."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from dmri_monai.io.bids_names import inherited, inherited_names
from dmri_monai.io.fsl import EDDY_ENDING, read_bvals
from dmri_monai.io.hcp import TABLE_NAMES
from dmri_monai.io.mrtrix import read_mrtrix
from dmri_monai.io.nifti import nifti_stem
from dmri_monai.io.present import NotFetchedError, present

__all__ = ["BvecsChoice", "Sidecars", "any_sidecars", "find_sidecars", "sidecars_of"]

logger = logging.getLogger(__name__)

BvecsChoice = Literal["auto", "fsl", "dipy", "mrtrix", "eddy"]
WORDS = {"bval": "b-values", "bvec": "b-vectors"}


@dataclass(frozen=True)
class Sidecars:
    """`bval` and `bvec` (along the image's axes), `mrtrix` (scanner frame), or all three; JSON general to specific.

    choice: how the b-vectors are to be read, see :func:`find_sidecars`.
    """

    bval: Path | None
    bvec: Path | None
    mrtrix: Path | None
    json: tuple[Path, ...]
    choice: BvecsChoice = "auto"

    @property
    def tables(self) -> tuple[Path, ...]:
        """The files of the gradient table."""
        return tuple(path for path in (self.bval, self.bvec, self.mrtrix) if path is not None)

    def read_bvals(self) -> Tensor:
        """(N,) b-values in s/mm² of a complete table."""
        return read_bvals(self.bval) if self.bval else read_mrtrix(self.tables[0])[0]

    @property
    def is_complete(self) -> bool:
        return self.mrtrix is not None or (self.bval is not None and self.bvec is not None)


def sidecars_of(image: Path, extension: str) -> tuple[Path, ...]:
    """Files with `extension` that apply to `image` by BIDS inheritance, general to specific."""
    return inherited(image, nifti_stem(image), extension)


def find_sidecars(image: Path, bvecs: BvecsChoice = "auto") -> Sidecars:
    """Sidecars of `image`: same stem, then BIDS inheritance, then the names bvals/bvecs; links are followed.

    bvecs: "fsl" or "dipy" take `.bval` and `.bvec`, "mrtrix" takes `.b`, "eddy" takes `<stem>.eddy_rotated_bvecs` as
    b-vectors, "auto" all there are but eddy's, whose presence is logged.  The nearest name counts, even that of a link
    that leads nowhere, which is then an error.  FileNotFoundError where a part of the table is missing.
    """
    if bvecs not in get_args(BvecsChoice):
        choices = ", ".join(map(repr, get_args(BvecsChoice)))
        raise ValueError(f"bvecs is {bvecs!r}, expected one of {choices} for {image}")
    places = [image] if image.resolve() == image.absolute() else [image, image.resolve()]
    for place in places:
        found = _beside(place, bvecs)
        if found.is_complete:
            return found
        if found.tables:
            break  # half a table beside a link is never completed by the other half beside its target
    raise FileNotFoundError(_missing(image, _beside(image, bvecs), bvecs))


def any_sidecars(image: Path) -> Sidecars:
    """Sidecars of `image` by whichever choice of b-vectors finds a whole table, for what needs the b-values alone."""
    try:
        return find_sidecars(image, "eddy")
    except NotFetchedError:
        raise
    except FileNotFoundError:
        return find_sidecars(image)


def _beside(image: Path, bvecs: BvecsChoice) -> Sidecars:
    stem, json = nifti_stem(image), sidecars_of(image, "json")
    if bvecs == "mrtrix":
        return Sidecars(None, None, _own(image, stem, [".b"]), json, bvecs)
    eddy = present(image.with_name(stem + EDDY_ENDING))
    bval = _nearest(image, stem, "bval")
    if bvecs == "eddy":
        return Sidecars(bval, eddy, None, json, bvecs)
    if eddy:
        logger.warning("%s is present and not used; pass bvecs='eddy' to use it", eddy)
    mrtrix = _own(image, stem, [".b"]) if bvecs == "auto" else None
    return Sidecars(bval, _nearest(image, stem, "bvec"), mrtrix, json, bvecs)


def _nearest(image: Path, stem: str, kind: str) -> Path | None:
    own = _own(image, stem, [f".{kind}", f".{kind}s"])
    if own:
        return own
    levels = inherited_names(image, stem, kind)
    return present(levels[-1]) if levels else present(image.with_name(TABLE_NAMES[kind]))


def _own(image: Path, stem: str, endings: list[str]) -> Path | None:
    """The file of the image's own stem with one of `endings`; in capitals, too, where there is none else."""
    for variant in (endings, [ending.upper() for ending in endings]):
        found = [path for ending in variant if (path := present(image.with_name(stem + ending)))]
        if len(found) > 1:
            raise ValueError(f"both {found[0].name} and {found[1].name} are there, expected one for {image}")
        if found:
            return found[0]
    return None


def _missing(image: Path, found: Sidecars, bvecs: BvecsChoice) -> str:
    stem = nifti_stem(image)
    if bvecs == "mrtrix":
        return f"no {stem}.b beside {image}"
    if bvecs == "eddy" and not found.bvec:
        return f"no {stem}{EDDY_ENDING} beside {image}"
    lacking = [kind for kind in WORDS if getattr(found, kind) is None]
    sought = [name for kind in lacking for name in (f"{stem}.{kind}", f"{stem}.{kind}s", TABLE_NAMES[kind])]
    sought += [f"a .{kind} inherited as BIDS allows" for kind in lacking]
    sought += [f"{stem}.b"] if bvecs == "auto" else []
    there = "".join(f"{path} is there; " for path in found.tables)
    words = " and no ".join(WORDS[kind] for kind in lacking)
    message = f"no {words} for {image}: {there}looked in vain for {', '.join(sought)}"
    if bvecs == "auto" and present(image.with_name(stem + EDDY_ENDING)):
        message += f"; {stem}{EDDY_ENDING} is there: pass bvecs='eddy'"
    return message
