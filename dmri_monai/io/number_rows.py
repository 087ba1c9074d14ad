"""Rows of numbers in a text file, read strictly.

A number is plain decimal text between ASCII blanks; anything a lenient parser would guess at (1_000, 0,5, a no-break
space) is an error that names the file, the entry and its text. `#` starts a comment, as MRtrix writes them.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from dmri_monai.io.present import required

__all__ = ["number_rows", "rectangle"]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NAN = re.compile(r"[+-]?nan", re.IGNORECASE | re.ASCII)
NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE | re.ASCII)
LINES = re.compile(r"\r\n|\r|\n")
BLANKS = re.compile(r"[ \t]+")  # str.split would also take control characters and no-break spaces


def number_rows(path: Path, *, nan: bool = False) -> list[list[float]]:
    """Numbers of every row that has any, as they stand; nan: whether "nan" is one.  ValueError names the entry."""
    try:
        text = required(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not a text file ({error.reason} at byte {error.start}): {path}") from error
    lines = (line.partition("#")[0].strip(" \t") for line in LINES.split(text))
    words = [BLANKS.split(line) for line in lines if line]
    rows = [
        [math.nan if nan and NAN.fullmatch(word) else _number(word, r, c, path) for c, word in enumerate(row)]
        for r, row in enumerate(words)
    ]
    if not rows:
        raise ValueError(f"gradient file is empty: {path}")
    return rows


def rectangle(path: Path, *, nan: bool) -> list[list[float]]:
    """As :func:`number_rows`, all rows of one length."""
    rows = number_rows(path, nan=nan)
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {i} has {len(row)} entries, row 0 has {len(rows[0])} in {path}")
    return rows


def _number(word: str, row: int, column: int, path: Path) -> float:
    if NUMBER.fullmatch(word):
        value = float(word)
        if math.isfinite(value):
            return value
    if NUMBER.fullmatch(word) or NOT_FINITE.fullmatch(word):
        raise ValueError(f"entry {column} of row {row} is {word[:40]}, expected a finite number in {path}")
    raise ValueError(f"entry {column} of row {row} is {word[:40]!r}, expected a number in {path}")
