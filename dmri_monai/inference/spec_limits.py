"""What no description of a model may hold: text that a config parser would run, and sizes that fill the memory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from dmri_monai.so3 import as_irreps

__all__ = [
    "EVALUATED",
    "LARGEST_DEGREE",
    "LARGEST_NUMBER",
    "check_deconvolution",
    "check_irreps",
    "check_plain",
    "check_sizes",
    "short",
]

EVALUATED = (
    "$@%"  # MONAI's config parser runs, resolves or replaces texts that begin so; no setting needs one
)
LARGEST_NUMBER = 1e6
LARGEST_SIZE = 256  # of anything that counts channels, layers or voxels
LARGEST_DEGREE = 12  # of harmonics
LARGEST_DIMENSION = 8 * LARGEST_SIZE  # of one feature
LONGEST_TEXT = 200
MOST_ENTRIES, DEEPEST = 256, 8  # of lists and mappings
IRREPS = re.compile(r"\d+\s*x|\d+[eoy]\b")  # a text that begins so is one of irreps


def check_plain(value: Any, name: str, depth: int = 0) -> None:
    """ValueError for what no setting needs: text that a config parser would run, huge or non-finite numbers."""
    if isinstance(value, str):
        if value[:1] in EVALUATED and value:
            raise ValueError(f"{name} begins with {value[0]!r}, which would be evaluated: {short(value)}")
        if len(value) > LONGEST_TEXT:
            raise ValueError(f"{name} has {len(value)} characters, at most {LONGEST_TEXT} are allowed")
    elif isinstance(value, int | float) and not (abs(value) <= LARGEST_NUMBER and math.isfinite(value)):
        raise ValueError(f"{name} is {short(value)}, expected a finite number of at most {LARGEST_NUMBER:g}")
    elif isinstance(value, Mapping | list | tuple):
        if len(value) > MOST_ENTRIES or depth > DEEPEST:
            raise ValueError(f"{name} has {len(value)} entries on level {depth}, more than any model has")
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, entry in entries:
            check_plain(str(key), f"a key of {name}", depth)
            check_plain(entry, f"{name}.{key}" if isinstance(value, Mapping) else name, depth + 1)


def check_sizes(options: Any, name: str = "network_options") -> None:
    """ValueError for a number of channels, layers or degrees that no network of ours has."""
    if isinstance(options, Mapping):
        for key, value in options.items():
            if key != "b_max":  # the one physical quantity among them
                check_sizes(value, str(key))
    elif isinstance(options, list | tuple):
        for value in options:
            check_sizes(value, name)
    elif isinstance(options, str) and IRREPS.match(options.strip()):
        check_irreps(options, name)
    elif isinstance(options, int):
        largest = LARGEST_DEGREE if name == "l_max" else LARGEST_SIZE
        if abs(options) > largest:
            raise ValueError(f"{name} is {short(options)}, expected at most {largest}")


def check_irreps(irreps: str, name: str) -> None:
    """ValueError for irreps that cannot be read, or are larger than those of any network of ours."""
    found = as_irreps(irreps)
    degree = max((ir.l for _, ir in found), default=0)  # their own lmax makes a list of all channels
    if found.dim > LARGEST_DIMENSION or degree > LARGEST_DEGREE:
        raise ValueError(
            f"{name} has {short(irreps)}: {found.dim} channels of degrees up to {degree}, expected at most "
            f"{LARGEST_DIMENSION} up to {LARGEST_DEGREE}"
        )


def short(value: Any) -> str:
    """`value` as text for a message."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 1e18 else f"{len(bin(value)) - 2} bits"
    return text if len(text) <= 80 else text[:77] + "..."


def check_deconvolution(options: Mapping[str, Any], l_max: int) -> None:
    """ValueError for network `options` that ask for a deconvolution which shells to `l_max` do not allow."""
    wanted = options.get("deconvolution", False)
    if not isinstance(wanted, bool):
        raise ValueError(f"network_options.deconvolution is {wanted!r}, expected true or false")
    channels = options.get("channels", 2)
    if wanted and (l_max < 2 or (isinstance(channels, int) and channels < 2)):
        raise ValueError(
            f"network_options.deconvolution needs l_max and channels of at least 2, got {l_max} and {channels}"
        )
