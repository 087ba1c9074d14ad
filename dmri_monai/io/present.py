"""Which names exist on disk: a link that leads nowhere exists, and is never taken for a file that is not there.

git-annex and datalad keep a data set's large files as links, or as small text files, until they are fetched. Falling
back from such a name would read another scan's table, or drop a mask, without a word.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

__all__ = ["NotFetchedError", "folders", "present", "required"]

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
POINTER_BYTES = 1024  # git-annex and git-lfs write a few hundred
POINTER = re.compile(rb"\A(\S*/annex/objects/\S+\s*\Z|version https://git-lfs)")
HOW = "fetch it with `datalad get` or `git annex get`"


class NotFetchedError(FileNotFoundError):
    """A name that exists, but whose content is not on this machine."""


def present(path: str | Path) -> Path | None:
    """`path` where it is a file with its content, None where nothing has that name.

    NotFetchedError for a link that leads nowhere and for a file that only stands for content elsewhere (git-annex,
    git-lfs); OSError for a folder, and where the name cannot be looked up.
    """
    path = Path(path)
    if not _exists(path):
        return None
    status = _status(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{path} is a folder, expected a file")
    if 0 < status.st_size <= POINTER_BYTES and stat.S_ISREG(status.st_mode):
        with path.open("rb") as file:
            if POINTER.match(file.read(POINTER_BYTES)):
                raise NotFetchedError(f"{path} only stands for content that is not here: {HOW}")
    return path


def required(path: str | Path) -> Path:
    """`path` where it is a file with its content; FileNotFoundError where nothing has that name."""
    found = present(path)
    if found is None:
        raise FileNotFoundError(f"there is no file {path}")
    return found


def folders(parent: Path, prefix: str) -> list[Path]:
    """Folders of `parent` whose names begin with `prefix`, sorted.

    NotFetchedError for a link that leads nowhere and has a folder's name, without a dot (`sub-01.html` is a report);
    PermissionError for a folder that cannot be listed, which `Path.glob` would pass over in silence.
    """
    names = sorted(entry for entry in parent.iterdir() if entry.name.startswith(prefix))
    return [
        entry
        for entry in names
        if entry.is_dir() or ("." not in entry.name and stat.S_ISDIR(_status(entry).st_mode))
    ]


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise
    return True


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        if path.is_symlink():
            target = os.readlink(path)
            raise NotFetchedError(f"{path} is a link to {target}, where nothing is: {HOW}") from error
        raise
