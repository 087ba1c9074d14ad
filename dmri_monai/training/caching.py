"""Preprocessed items on disk, read by memory map: cohorts larger than memory."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.utils import pickle_hashing
from monai.transforms import Compose, Transform, reset_ops_id
from monai.transforms.traits import RandomizableTrait
from monai.utils import TraceKeys

import dmri_monai
from dmri_monai.io.writing import replacing
from dmri_monai.transforms import LoadDWId

__all__ = ["DiskCache"]

# what meta data hold besides tensors, text and numbers: NumPy arrays, and the keys of MONAI's traces
ARRAY = [np.ndarray, np.dtype, np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
NUMBERS = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdU"]
READABLE = [*ARRAY, *NUMBERS, TraceKeys]
DAMAGED = (RuntimeError, ValueError, EOFError, pickle.UnpicklingError)


class DiskCache:
    """Items as the leading deterministic transforms leave them, one file each, read by memory map.

    What follows, such as a random crop, then reads only the voxels it takes.  transform: its transforms up to the
    first random one are kept.  folder: made if need be; trainings may share it, also at the same time.

    A file's name is a hash of transforms with their settings, item, versions of torch, MONAI and this package, and
    name, size and times of every file the item is read from, so what has changed is made anew; old files stay.  The
    time of change (ctime), which no program can set back, tells a file apart whose size and modification time are the
    same.  An entry holds its own name and checksums, which are compared when a training first reads it: a damaged
    entry is made anew with a warning, one that another item or program left is a ValueError naming it.
    MONAI's `PersistentDataset` reads an item whole, keeps one whose scan has changed, and goes on silently where it
    cannot write.  Raises OSError naming the folder or file that cannot be written,
    TypeError for settings that cannot be compared (a lambda) and items that cannot be read back safely.
    """

    def __init__(self, folder: str | Path, transform: Compose) -> None:
        self.folder = Path(folder)
        self.transform = transform
        self.end = transform.get_index_of_first(
            lambda t: isinstance(t, RandomizableTrait) or not isinstance(t, Transform)
        )
        self.leading = transform.transforms[: self.end]
        releases = [dmri_monai.__version__, version("monai"), version("torch")]
        self.settings = [*releases, _settings_hash(self.leading)]
        # which entries have been compared, shared with the processes that load data; one in a million is mistaken
        self._verified = torch.zeros(2**20, dtype=torch.uint8)
        with suppress(RuntimeError):  # no shared memory is left: each process compares for itself
            self._verified.share_memory_()
        _check_writable(self.folder)

    def __call__(self, item: Mapping[Hashable, Any]) -> Any:
        """`item` after the leading transforms; its tensors may be changed, the file stays as it is."""
        path = self.path(item)
        try:
            return self._read(path, path.name)
        except FileNotFoundError:
            pass
        except ForeignEntryError:
            raise
        except DAMAGED as error:
            warnings.warn(f"damaged, made anew: {path} ({error})", stacklevel=2)
        self._write(path, item)
        return self._read(path, path.name)

    def path(self, item: Mapping[Hashable, Any]) -> Path:
        """Where `item` is or will be; FileNotFoundError naming a file that it lacks."""
        stamps = [_stamp(path) for path in _files(item, self.leading)]
        parts = [*self.settings, pickle_hashing(dict(item)).decode(), *map(str, stamps)]
        return self.folder / f"{hashlib.sha256('/'.join(parts).encode()).hexdigest()[:32]}.pt"

    def _write(self, path: Path, item: Mapping[Hashable, Any]) -> None:
        done = self.transform(dict(item), end=self.end)
        reset_ops_id(done)  # they are addresses in this process
        try:
            with replacing(path) as (aside,):
                torch.save({"entry": path.name, "item": done}, aside)
                self._read(aside, path.name)
        except (OSError, RuntimeError) as error:  # the latter where the disk is full
            raise OSError(f"cannot write {path}: {error}") from error
        except (pickle.PickleError, AttributeError, TypeError) as error:
            raise TypeError(f"cache: an item may hold tensors, arrays, text and numbers: {error}") from error

    def _read(self, path: Path, name: str) -> Any:
        """The item in `path`, which must be the entry `name`; its tensors are read from the file when they are used."""
        if not path.is_file():
            raise FileNotFoundError(path)
        status = path.stat()
        version = f"{name}/{status.st_ino}/{status.st_ctime_ns}"
        place = int(hashlib.sha256(version.encode()).hexdigest()[:5], 16)
        if not self._verified[place]:
            _check_sums(path)
        content = _load(path)
        found = content.get("entry") if isinstance(content, Mapping) else None
        if found != name:
            what = f"the entry {found}" if isinstance(found, str) else "no entry of a cache"
            raise ForeignEntryError(f"{path} is {what}: another program or hand put it there; delete it")
        self._verified[place] = 1
        return content["item"]


class ForeignEntryError(ValueError):
    """A whole file under the name of an entry that holds something else."""


def _settings_hash(transforms: Sequence[Any]) -> str:
    try:
        return str(pickle_hashing(transforms).decode())
    except (pickle.PickleError, AttributeError, TypeError) as error:  # such as of a lambda
        names = ", ".join(type(t).__name__ for t in transforms)
        raise TypeError(f"cache: the settings of one of {names} cannot be compared: {error}") from error


def _load(path: Path) -> Any:
    """Only what cannot run code is read; the map is private, so changes stay in memory."""
    with torch.serialization.safe_globals(READABLE):
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _check_sums(path: Path) -> None:
    """ValueError where a part of the file does not have its checksum, which a memory map does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    if damaged is not None:
        raise ValueError(f"its part {damaged} is damaged")


def _stamp(path: Path) -> tuple[str, int, int, int]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _files(item: Mapping[Hashable, Any], transforms: Iterable[Any]) -> list[Path]:
    """Every file that `item` is read from, sidecars included."""
    named = {Path(value) for value in item.values() if isinstance(value, str | os.PathLike)}
    found = {path for path in named if path.is_file()}
    for transform in transforms:
        if isinstance(transform, LoadDWId):
            found |= set(transform.files(item))
    return sorted(found)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to the cache folder {folder}: {error}") from error
