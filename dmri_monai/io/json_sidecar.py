"""JSON sidecars as converters really write them: what cannot be used is said and left out, and nothing else is lost."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmri_monai.io.present import required

__all__ = ["read_json", "short"]


class _Doubled(tuple[Any, ...]):
    """The values of a key that stands more than once in one object."""


def read_json(path: Path, *, strict: bool = False) -> dict[str, Any]:
    """The object a JSON file holds; {} with a warning naming the file for anything else.

    A byte that is not UTF-8 is read as Latin-1, which older converters wrote, and warned of.  A key that stands twice
    with different values is warned of and left out.  strict: ValueError instead of each of these warnings, for files
    of which everything is needed.
    """
    say = _refuse if strict else _warn
    text = _text(path, say)
    try:
        content = json.loads(text, object_pairs_hook=_all_once if strict else _once)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        say(f"not valid JSON ({error}), nothing of it is used: {path}")
        return {}
    if not isinstance(content, dict):
        say(f"JSON holds {type(content).__name__}, expected an object; nothing of it is used: {path}")
        return {}
    for key, value in content.items():
        if isinstance(value, _Doubled):
            say(f"{key} stands more than once, as {' and '.join(map(short, value))}; left out: {path}")
    return {key: value for key, value in content.items() if not isinstance(value, _Doubled)}


def short(value: Any) -> str:
    """`value` as Python writes it, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _text(path: Path, say: Callable[[str], None]) -> str:
    content = required(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        say(f"byte {error.start} is not UTF-8, read as Latin-1: {path}")
        return content.decode("latin-1")


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def _refuse(message: str) -> None:
    raise ValueError(message)


def _all_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """On every level, where :func:`_once` leaves it to the reader of the uppermost."""
    found = _once(pairs)
    for key, value in found.items():
        if isinstance(value, _Doubled):
            raise ValueError(f"{key} stands more than once, as {' and '.join(map(short, value))}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key not in found or found[key] == value:
            found[key] = value
        else:
            earlier = found[key]
            found[key] = _Doubled((*(earlier if isinstance(earlier, _Doubled) else (earlier,)), value))
    return found
