"""Switches that come from a command line."""

from __future__ import annotations

__all__ = ["NO_PATH", "flag"]

NO_PATH = ("", "null", "none")  # how a command line says None


def flag(name: str, value: bool | str) -> bool:
    """`value` as a bool; the words true and false too, which the command line hands over as text.

    Any other text raises ValueError: as a condition, it would count as true.

    >>> flag("amp", "false"), flag("amp", True)
    (False, True)
    """
    words = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected true or false")
    return value
