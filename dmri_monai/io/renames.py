"""Files renamed together: a note of all renames comes first, so that what a kill interrupts can be finished."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["NOTE", "carry_out", "write_note"]

NOTE = ".renames"  # ending of a note's name
TEMPORARY = ".tmp-"  # begins the names of files that wait for their own


def write_note(note: Path, draft: Path, renames: Mapping[str, str], gone: Sequence[str]) -> None:
    """Decide, in one rename, that files of the note's folder get the names in `renames` and those in `gone` go.

    draft: where the note is written first.
    """
    try:
        draft.write_text(json.dumps({"renames": dict(renames), "gone": list(gone)}), encoding="ascii")
        os.replace(draft, note)
    finally:
        draft.unlink(missing_ok=True)


def carry_out(note: Path, superseded: bool = False) -> None:
    """Do what `note` says, or the rest of it, and remove it; several processes may do so at once.

    superseded: do nothing more where one of the files has been written since.  ValueError for a damaged note.
    """
    folder, decided = note.parent, note.stat().st_mtime_ns
    renames, gone = _read(note)
    steps = [*renames.items(), *((None, name) for name in gone)]
    for source, name in steps:
        if superseded and any(_modified(folder / target) > decided for target in (*renames.values(), *gone)):
            break
        if source is None:
            (folder / name).unlink(missing_ok=True)
        else:
            with suppress(FileNotFoundError):  # it has its name already
                os.replace(folder / source, folder / name)
    note.unlink(missing_ok=True)


def _read(note: Path) -> tuple[dict[str, str], list[str]]:
    """Renames and what goes: files in the note's folder alone, of which only temporary ones get another name."""
    try:
        content = json.loads(note.read_bytes())
        renames, gone = dict(content["renames"]), list(content["gone"])
        named = (*renames, *renames.values(), *gone)
        plain = all(os.path.basename(name) == name and name not in ("", ".", "..") for name in named)
        plain = plain and all(source.startswith(TEMPORARY) for source in renames)
    except (ValueError, KeyError, TypeError, RecursionError):
        plain = False
    if not plain:
        raise ValueError(f"{note} is not a note of renames, or damaged")
    return renames, gone


def _modified(path: Path) -> int:
    """When, in nanoseconds; 0 for a file that is not there."""
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0
