"""BIDS file names: entities, suffix, the inheritance principle, and filters on entities."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from dmri_monai.io.present import required

__all__ = [
    "Filters",
    "dataset_levels",
    "entities_of",
    "inherited",
    "inherited_names",
    "matches",
    "parse_filters",
]

# entity -> the value or values wanted; None: scans without the entity
Filters = Mapping[str, str | int | Sequence[str | int] | None]
LONG_NAMES = {"subject": "sub", "session": "ses", "acquisition": "acq", "direction": "dir"}


def entities_of(stem: str) -> dict[str, str]:
    """Entities of a file name without its ending: {"sub": "01", "dir": "AP"} for `sub-01_dir-AP_dwi`."""
    return {key: value for key, _, value in (pair.partition("-") for pair in stem.split("_")[:-1])}


def parse_filters(words: str | Sequence[str]) -> dict[str, list[str]]:
    """Filters of "entity=value" words (one text: separated by commas); an entity named twice takes either value.

    >>> parse_filters(["dir=AP", "run=1", "run=2"])
    {'dir': ['AP'], 'run': ['1', '2']}
    """
    filters: dict[str, list[str]] = {}
    for word in words.split(",") if isinstance(words, str) else words:
        key, equals, value = word.strip().partition("=")
        if not (key and equals and value):
            raise ValueError(f"filter is {word!r}, expected entity=value such as dir=AP")
        filters.setdefault(key, []).append(value)
    return filters


def matches(entities: Mapping[str, str], filters: Filters) -> bool:
    """Whether a scan with `entities` passes all `filters`; numbers are compared as numbers (run 1 is run-01)."""
    for name, wanted in filters.items():
        value = entities.get(LONG_NAMES.get(name, name))
        choices = [wanted] if wanted is None or isinstance(wanted, str | int) else list(wanted)
        if not any(_same(value, choice) for choice in choices):
            return False
    return True


def _same(value: str | None, wanted: str | int | None) -> bool:
    if value is None or wanted is None:
        return value is wanted
    text = str(wanted)
    return value == text or (value.isdigit() and text.isdigit() and int(value) == int(text))


def inherited(image: Path, stem: str, extension: str) -> tuple[Path, ...]:
    """Files with `extension` that apply to `image` by BIDS inheritance, general to specific.

    stem: name of `image` without its ending.  A file applies when its suffix is the image's and its entities are among
    the image's; the data set ends at the folder that holds the `sub-<label>` folder. Two equally specific files in
    one folder are an error, and so is a link that leads nowhere.
    """
    return tuple(required(path) for path in inherited_names(image, stem, extension))


def inherited_names(image: Path, stem: str, extension: str) -> list[Path]:
    """As :func:`inherited`, by name alone: a link that leads nowhere is among them.

    An image whose name is not made of BIDS entities has only the file of its own stem.
    """
    own = _parts(stem)
    if own is None:
        path = image.with_name(f"{stem}.{extension}")
        return [path] if path.is_symlink() or path.exists() else []
    levels = dataset_levels(image.absolute().parent)
    return [path for folder in levels for path in _applying(folder, own, extension, image)]


def dataset_levels(folder: Path) -> list[Path]:
    """`folder` and those above it up to the data set's root, the folder that holds `sub-<label>`; the root first."""
    chain = [folder, *folder.parents]
    for depth, level in enumerate(chain[:-1]):
        if level.name.startswith("sub-"):
            return chain[depth + 1 :: -1]
    return [folder]


def _applying(folder: Path, own: tuple[frozenset[str], str], extension: str, image: Path) -> list[Path]:
    found: list[tuple[int, Path]] = []
    for path in sorted(folder.glob(f"*.{extension}")):
        theirs = _parts(path.name.removesuffix(f".{extension}"))
        if theirs and theirs[1] == own[1] and theirs[0] <= own[0] and not path.is_dir():
            found.append((len(theirs[0]), path))
    found.sort()
    for (one, first), (other, second) in pairwise(found):
        if one == other:
            raise ValueError(f"both {first} and {second} apply to {image}, expected one")
    return [path for _, path in found]


def _parts(stem: str) -> tuple[frozenset[str], str] | None:
    *pairs, suffix = stem.split("_")
    return (frozenset(pairs), suffix) if all(re.fullmatch(r"[^-]+-.+", pair) for pair in pairs) else None
