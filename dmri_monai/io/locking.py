"""One writer at a time: a lock on a folder that says who holds it, and that ends with its process."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["FolderLock", "alone_with", "locked", "remove_dead_locks"]

PREFIX = ".dmri_monai"
WRITING = "writing "  # begins the purpose of a lock on single files


class FolderLock:
    """A lock on `folder`, taken by :meth:`acquire` and given back by :meth:`release` or the end of the process.

    The operating system holds it (flock), so that a process that was killed leaves none behind; the file
    `.dmri_monai<share>.lock` holds the owner and goes with the lock.  On file systems without flock, existence of the
    file is the lock, which is taken over where its process on this machine has ended.

    purpose: what is being done, for the other's message.  share: part k of n that processes of one command write, as
    (k, n): parts of the same n do not exclude each other, everything else does.
    """

    def __init__(self, folder: Path, purpose: str, share: tuple[int, int] = (0, 1)) -> None:
        self.folder, self.purpose, self.share = folder, purpose, share
        self._lock: FileLock | None = None

    @property
    def path(self) -> Path:
        """The file of the lock."""
        part = "" if self.share == (0, 1) else f".{self.share[0] + 1}of{self.share[1]}"
        return self.folder / f"{PREFIX}{part}.lock"

    def acquire(self, wait_s: float = 0.0) -> None:
        """Take the lock; BlockingIOError naming process, machine and age of the one who holds it after `wait_s`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = _taken(self.path, wait_s)
        try:
            for path in set(self.folder.glob(f"{PREFIX}*.lock")) - {self.path}:
                if not path.name.endswith(f"of{self.share[1]}.lock") or self.share[1] == 1:
                    _give_back(_taken(path, 0.0), path)
            _describe(self.path, self.purpose)
        except BaseException:
            _give_back(lock, self.path)
            raise
        self._lock = lock

    def release(self) -> None:
        """Give the lock back; nothing where it is not held."""
        if self._lock is not None:
            _give_back(self._lock, self.path)
            self._lock = None


@contextmanager
def locked(
    folder: Path, purpose: str, share: tuple[int, int] = (0, 1), wait_s: float = 0.0
) -> Iterator[None]:
    """:class:`FolderLock` on `folder` inside."""
    lock = FolderLock(folder, purpose, share)
    lock.acquire(wait_s)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def alone_with(path: Path, wait_s: float) -> Iterator[None]:
    """Inside, no other process writes `path` and what belongs to it; BlockingIOError where one still does after
    `wait_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    place = path.with_name(f".{path.name}.lock")
    lock = _taken(place, wait_s)
    try:
        _describe(place, f"{WRITING}{path.name}")
        yield
    finally:
        _give_back(lock, place)


def remove_dead_locks(folder: Path) -> None:
    """Remove the files of locks on single files in `folder` whose processes were killed."""
    for path in folder.glob(".*.lock"):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            if json.loads(path.read_text(encoding="utf-8"))["purpose"].startswith(WRITING):
                _give_back(_taken(path, 0.0), path)


def _taken(path: Path, wait_s: float) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=wait_s)
    except Timeout:
        raise BlockingIOError(
            f"{path.parent} is in use {_owner(path)}: wait until it has ended, or choose another folder"
        ) from None
    return lock


def _give_back(lock: FileLock, path: Path) -> None:
    path.unlink(missing_ok=True)  # while it is held: whoever waits for it sees that the file is another one
    lock.release()


def _describe(path: Path, purpose: str) -> None:
    if path.stat().st_size == 0:  # else the lock is the file itself, with a content of its own
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "purpose": purpose}
        path.write_text(json.dumps(owner), encoding="utf-8")


def _owner(path: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):
        owner = json.loads(path.read_text(encoding="utf-8"))
        minutes = (time.time() - float(owner["since"])) / 60
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(owner["since"])))
        process = f"process {int(owner['pid'])} on {str(owner['host'])[:64]}"
        return f"by {str(owner['purpose'])[:64]}: {process}, since {since} ({minutes:.0f} minutes)"
    return "by another process"
