"""Names of temporary files that say whose they are, and the removal of those whose process has ended."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

from dmri_monai.io.locking import remove_dead_locks
from dmri_monai.io.renames import NOTE, TEMPORARY, carry_out

__all__ = ["finish_renames", "remove", "sweep", "temporary_name"]

NAME = re.compile(re.escape(TEMPORARY) + r"([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.")
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
    to for a week.
    """
    folder = folder.resolve()
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):
        finish_renames(folder)
        for path in _left_in(folder):
            with suppress(OSError):
                remove(path)
        remove_dead_locks(folder)


def finish_renames(folder: Path) -> None:
    """Give the files that a process killed between two renames had written together in `folder` their names.

    OSError where that is not allowed; nothing without such a process, or where the files were written anew since.
    """
    for note in _left_in(folder, ending=NOTE):
        with suppress(FileNotFoundError):  # another process has done it
            try:
                carry_out(note, superseded=True)
            except ValueError:
                note.unlink()


def _left_in(folder: Path, ending: str = "") -> list[Path]:
    """Files in `folder` of processes that have ended."""
    with os.scandir(folder) as entries:
        names = [(NAME.match(entry.name), entry.path) for entry in entries if entry.name.endswith(ending)]
    return [Path(path) for m, path in names if m and _is_dead(m[1], int(m[2]), Path(path))]


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
