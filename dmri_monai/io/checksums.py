"""JSON records that notice damage: one entry is the checksum of all the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["checked", "with_checksum"]

ENTRY = "checksum"


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content`, which JSON can hold, with its checksum as the last entry."""
    return {**content, ENTRY: _checksum(content)}


def checked(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` without its checksum; ValueError where that is of something else.  Records without one are taken."""
    rest = {key: value for key, value in content.items() if key != ENTRY}
    if content.get(ENTRY, _checksum(rest)) != _checksum(rest):
        raise ValueError(f"it is damaged or was edited; if that was meant, delete its entry {ENTRY!r}")
    return rest


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256, shortened: it finds damage, it does not keep forgers out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
