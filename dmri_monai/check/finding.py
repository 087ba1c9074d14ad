"""What a check can find: every code, the stage it belongs to, and how serious it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CODES", "STAGES", "Finding", "Severity", "Stage"]

Stage = Literal["image", "b-values", "slices", "b-vectors"]
STAGES: tuple[Stage, ...] = ("image", "b-values", "slices", "b-vectors")  # in the order they are judged
Severity = Literal["error", "warning", "note"]

# code -> stage and severity.  error: no network should see the image; warning: looks wrong; note: good to know.
# docs/check.md says of each what it means and what to do.
CODES: dict[str, tuple[Stage, Severity]] = {
    "not-finite": ("image", "error"),
    "no-signal": ("image", "error"),
    "constant-signal": ("image", "error"),
    "negated-signal": ("image", "error"),
    "empty-volume": ("image", "warning"),
    "single-slice": ("image", "note"),
    "small-block": ("image", "note"),
    "no-b0": ("b-values", "warning"),
    "b0-range": ("b-values", "note"),
    "volume-order": ("b-values", "warning"),
    "derived-volume": ("b-values", "warning"),
    "b0-not-brightest": ("b-values", "warning"),
    "levels-not-decaying": ("b-values", "warning"),
    "volume-level": ("b-values", "warning"),
    "low-snr": ("b-values", "warning"),
    "dropped-slices": ("slices", "warning"),
    "table-undetermined": ("b-vectors", "warning"),
    "bvecs-flipped-x": ("b-vectors", "warning"),
    "bvecs-flipped-y": ("b-vectors", "warning"),
    "bvecs-flipped-z": ("b-vectors", "warning"),
    "bvecs-swapped-xy": ("b-vectors", "warning"),
    "bvecs-swapped-xz": ("b-vectors", "warning"),
    "bvecs-swapped-yz": ("b-vectors", "warning"),
    "bvecs-permuted": ("b-vectors", "warning"),
    "bvecs-frame": ("b-vectors", "warning"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that a check noticed: a stable `code` of `CODES`, a sentence, and the volumes it is about."""

    code: str
    message: str
    volumes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"unknown finding {self.code!r}, expected one of {', '.join(CODES)}")

    @property
    def stage(self) -> Stage:
        return CODES[self.code][0]

    @property
    def severity(self) -> Severity:
        return CODES[self.code][1]

    def __str__(self) -> str:
        return self.message
