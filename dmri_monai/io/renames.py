"""Files renamed together: a note of all renames comes first, so that what a kill interrupts can be finished.

A note may have come with its folder from anywhere: whoever carries it out has to know whose it is.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["NOTE", "carry_out", "half_done", "write_note"]

NOTE = ".renames"  # ending of a note's name
TEMPORARY = ".tmp-"  # begins the names of files that wait for their own
LARGEST = 1 << 20  # bytes of a note


def write_note(note: Path, draft: Path, renames: Mapping[str, str], gone: Sequence[str]) -> None:
    """Decide, in one rename, that files of the note's folder get the names in `renames` and those in `gone` go.

    draft: where the note is written first.
    """
    try:
        draft.write_text(json.dumps({"renames": dict(renames), "gone": list(gone)}), encoding="ascii")
        os.replace(draft, note)
    finally:
        draft.unlink(missing_ok=True)


def carry_out(note: Path, superseded: bool = False, removing: bool = True) -> None:
    """Do what `note` says, or the rest of it, and remove it; several processes may do so at once.

    superseded: do nothing more where one of the files has been written since.  removing: without, nothing but renames,
    and the note stays.  ValueError for a damaged note.
    """
    folder, (renames, gone, decided) = note.parent, _read(note)
    steps = [*renames.items(), *((None, name) for name in gone if removing)]
    for source, name in steps:
        if superseded and _written_since(decided, folder, (*renames.values(), *gone)):
            break
        if source is None:
            (folder / name).unlink(missing_ok=True)
        else:
            with suppress(FileNotFoundError):  # it has its name already
                os.replace(folder / source, folder / name)
    if removing:
        note.unlink(missing_ok=True)


def half_done(note: Path, removals: bool = True) -> dict[str, str]:
    """The renames of `note` if it was carried out in part and none of the files has been written since; else {}.

    removals: what is still to be removed counts as well.
    """
    folder = note.parent
    try:
        renames, gone, decided = _read(note)
    except (OSError, ValueError):
        return {}
    waiting = [source for source in renames if os.path.lexists(folder / source)]
    left = waiting or (removals and any(os.path.lexists(folder / name) for name in gone))
    begun = len(waiting) < len(renames)
    return (
        renames if begun and left and not _written_since(decided, folder, (*renames.values(), *gone)) else {}
    )


def _read(note: Path) -> tuple[dict[str, str], list[str], int]:
    """Renames, what goes, and when that was decided (ns).

    They are of files in the note's folder alone, and only temporary files of the note's own process get another name.
    """
    info = note.lstat()
    try:
        if not stat.S_ISREG(info.st_mode) or info.st_size > LARGEST:
            raise ValueError
        content = json.loads(note.read_bytes())
        renames, gone = dict(content["renames"]), list(content["gone"])
        plain = all(map(_is_plain, (*renames, *renames.values(), *gone)))
        process = "-".join(note.name.split("-")[:3]) + "-"
        plain = plain and all(
            source.startswith(process) and not (note.parent / source).is_symlink() for source in renames
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        plain = False
    if not plain:
        raise ValueError(f"{note} is not a note of renames, or damaged")
    return renames, gone, info.st_mtime_ns


def _is_plain(name: str) -> bool:
    """Whether `name` is that of a file in the folder itself; ValueError or TypeError where it is no name at all."""
    return os.path.basename(name) == name and b"\0" not in os.fsencode(name) and name not in ("", ".", "..")


def _written_since(decided: int, folder: Path, names: Iterable[str]) -> bool:
    """Whether a file of `names` is younger than `decided` (ns)."""
    return any(_modified(folder / name) > decided for name in names)


def _modified(path: Path) -> int:
    """When, in nanoseconds; 0 for a file that is not there."""
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0
