"""Results as JSON lines, one per arm: appended whole or not at all, so that an interrupted run goes on."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmri_monai.io.writing import replacing

__all__ = ["Results"]


class Results:
    """The lines of one file; a `key` stands there once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def lines(self) -> list[dict[str, Any]]:
        """All lines in the order they were written; ValueError naming file and line for one that is no JSON."""
        if not self.path.is_file():
            return []
        return [
            self._parse(number, text)
            for number, text in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1)
        ]

    def get(self, key: str) -> dict[str, Any] | None:
        """The line of `key`, None where there is none."""
        return next((line for line in self.lines() if line["key"] == key), None)

    def add(self, line: Mapping[str, Any]) -> None:
        """Append `line`; ValueError where its key is there already.  Other processes may add at the same time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.parent):
            if self.get(line["key"]) is not None:
                raise ValueError(f"{self.path} already has a line {line['key']}")
            before = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
            with replacing(self.path) as (temporary,):
                temporary.write_text(f"{before}{json.dumps(line)}\n", encoding="utf-8")

    def _parse(self, number: int, text: str) -> dict[str, Any]:
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is no JSON ({error}): {self.path}") from error
        if not isinstance(line, dict) or "key" not in line:
            raise ValueError(f"line {number} has no key: {self.path}")
        return line


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes that lock `folder` out; the lock ends with the process, whatever ends it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
