"""Colours that keep their meaning for colour-blind readers, and the direction code of fibre maps."""

from __future__ import annotations

import numpy as np
from torch import Tensor

__all__ = ["BACKGROUND", "class_colours", "contrast", "direction_colours", "hex_colour"]

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/: the order puts the hues that stand out on grey
# first.
OKABE_ITO = (
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (0, 114, 178),
)
BACKGROUND = 0


def class_colours(labels: list[int]) -> dict[int, tuple[int, int, int]]:
    """Colour (red, green, blue) in 0..255 of each class but the background 0; they repeat after seven."""
    foreground = sorted(set(labels) - {BACKGROUND})
    return {label: OKABE_ITO[i % len(OKABE_ITO)] for i, label in enumerate(foreground)}


def hex_colour(rgb: tuple[int, int, int]) -> str:
    """CSS form of a colour.

    >>> hex_colour((230, 159, 0))
    '#e69f00'
    """
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def direction_colours(fa: Tensor, v1_world: Tensor) -> np.ndarray:
    """(X, Y, Z, 3) uint8 direction-encoded FA: |V1| in the world frame times FA.

    Red is left-right, green anterior-posterior, blue inferior-superior.  fa: (X, Y, Z) in [0, 1];
    v1_world: (3, X, Y, Z) unit vectors, RAS+.  Reference: Pajevic and Pierpaoli 1999,
    doi:10.1002/(SICI)1522-2594(199909)42:3<526::AID-MRM15>3.0.CO;2-J
    """
    colours = (v1_world.abs() * fa.clamp(0, 1)).movedim(0, -1)
    return (255 * colours.clamp(0, 1)).round().byte().cpu().numpy()


def contrast(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    """WCAG 2 contrast ratio of two colours, 1 to 21; text needs 4.5, graphics 3.

    >>> contrast((0, 0, 0), (255, 255, 255))
    21.0
    """
    low, high = sorted([_luminance(first), _luminance(second)])
    return round((high + 0.05) / (low + 0.05), 2)


def _luminance(rgb: tuple[int, int, int]) -> float:
    value = np.asarray(rgb, dtype=float) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
