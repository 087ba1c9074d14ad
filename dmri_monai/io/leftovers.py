"""Names of temporary files that say whose they are, and the removal of those whose process has ended."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from dmri_monai.io.locking import remove_dead_locks
from dmri_monai.io.renames import NOTE, TEMPORARY, carry_out, half_done

__all__ = ["finish_renames", "remove", "require_settled", "sweep", "temporary_name", "unfinished"]

NAME = re.compile(re.escape(TEMPORARY) + r"([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.")
OTHERS_S = 1.0  # seconds for another process to give two files their names, which takes milliseconds
LONGEST = 48  # characters of the name's end; file systems allow 255 bytes
ABANDONED_S = (
    7 * 24 * 3600
)  # a file of another machine that nobody has written to for so long; writing takes minutes

_swept: set[Path] = set()


def temporary_name(name: str) -> str:
    """A name for a file that will be called `name`, with the same ending: hidden, unique, with machine and process."""
    return f"{TEMPORARY}{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.{name[-LONGEST:]}"


def sweep(folder: Path) -> None:
    """Finish what killed processes had decided to rename in `folder`, and remove what else they left there.

    Once per process and folder.  Of processes on this machine those that have ended, of others files nobody has written
    to for a week; what another machine has half renamed stays, so that nobody takes it for whole.
    """
    folder = folder.resolve()
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):
        finish_renames(folder)
        notes = [note for note, _, _ in _named(folder, NOTE)]
        kept = {name for note in notes if (half := half_done(note)) for name in (note.name, *half)}
        for path, machine, pid in _named(folder):
            if path.name not in kept and _is_dead(machine, pid, path):
                with suppress(OSError):
                    remove(path)
        remove_dead_locks(folder)


def finish_renames(folder: Path, removing: bool = True) -> None:
    """Give the files that a process killed between two renames had written together in `folder` their names.

    A process of this machine and user: a note of any other may have come with the folder, and is not obeyed.
    removing: also remove what it had decided to, and the note.
    OSError where that is not allowed; nothing without such a process, or where the files were written anew since.
    """
    for note, machine, pid in _named(folder, NOTE):
        with suppress(FileNotFoundError):  # another process has done it
            if machine != _machine() or not _is_dead(machine, pid, note) or not _is_mine(note):
                continue
            try:
                carry_out(note, superseded=True, removing=removing)
            except ValueError:
                if removing:
                    note.unlink()


def unfinished(path: Path, removals: bool = True) -> Path | None:
    """The note of `path` and what belongs to it that was carried out in part, and is not ours to finish.

    removals: what is still to be removed counts as well.
    """
    for note, machine, pid in _named(path.parent, NOTE):
        lives = machine == _machine() and not _is_dead(machine, pid, note)
        if not lives and path.name in half_done(note, removals).values():
            return note
    return None


def require_settled(path: Path) -> None:
    """Before reading `path`: finish its renames, removing nothing.

    ValueError where they are another's to finish, who has not done it within `OTHERS_S`.
    """
    until = time.monotonic() + OTHERS_S
    with suppress(OSError):  # no such folder, or not ours to write in
        while any(_named(path.parent, NOTE)):
            with suppress(OSError):
                finish_renames(path.parent, removing=False)
            note = unfinished(path, removals=False)
            if note is None:
                return
            if time.monotonic() > until:
                raise ValueError(
                    f"files that belong together are half old, half new, by {note.name}: another machine or user is "
                    f"writing them, or was stopped; write them anew, or remove that note to read them as they are: "
                    f"{path}"
                )
            time.sleep(0.1)


def _named(folder: Path, ending: str = "") -> Iterator[tuple[Path, str, int]]:
    """Temporary files in `folder`, each with its machine and process."""
    with os.scandir(folder) as entries:
        names = [(NAME.match(entry.name), entry.path) for entry in entries if entry.name.endswith(ending)]
    return ((Path(path), m[1], int(m[2])) for m, path in names if m)


def _is_mine(path: Path) -> bool:
    return not hasattr(os, "geteuid") or path.lstat().st_uid == os.geteuid()


def _is_dead(machine: str, pid: int, path: Path) -> bool:
    if machine != _machine():
        with suppress(OSError):
            return time.time() - path.lstat().st_mtime > ABANDONED_S
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # such as another user's, which lives
        return False
    return False


def remove(path: Path) -> None:
    """Remove a file, or a folder with all it holds; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@cache
def _machine() -> str:
    """Where a process number means something: this host since it was started, and its container."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:8]
