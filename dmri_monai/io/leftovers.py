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

__all__ = ["remove", "sweep", "temporary_name"]

NAME = re.compile(r"\.tmp-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.")
LONGEST = 48  # characters of the name's end; file systems allow 255 bytes
ABANDONED_S = (
    7 * 24 * 3600
)  # a file of another machine that nobody has written to for so long; writing takes minutes

_swept: set[Path] = set()


def temporary_name(name: str) -> str:
    """A name for a file that will be called `name`, with the same ending: hidden, unique, with machine and process."""
    return f".tmp-{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.{name[-LONGEST:]}"


def sweep(folder: Path) -> None:
    """Remove what killed processes left in `folder`, once per process and folder.

    Of processes on this machine those that have ended, of others files nobody has written to for a week.
    """
    folder = folder.resolve()
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = NAME.match(entry.name)
            if match and _is_dead(match[1], int(match[2]), Path(entry.path)):
                with suppress(OSError):
                    remove(Path(entry.path))


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
