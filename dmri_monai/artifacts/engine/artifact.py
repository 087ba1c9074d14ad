"""What a random artifact is: a frozen set of parameter ranges that draws numbers and applies drawn numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from dmri_monai.artifacts.engine.scan_context import ScanContext

__all__ = ["Artifact", "Drawn", "Range", "Step"]

Range = tuple[float, float]
Drawn = dict[str, Any]
Step = Literal["alone", "displace", "filter"]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Base of the random artifacts: ranges in, drawn numbers (JSON-serialisable) out.

    `prob` is the probability that a scan has the artifact at all.  Every other field is a range (low, high),
    or one number for both; how it is drawn stands with the class.  `draw` is the only random part.  `step`
    says how the drawn numbers act: "alone" through `apply`; "displace" through `displacement`, shifts of
    neighbouring artifacts adding up; "filter" through `gains`, gains of k-space lines of neighbouring
    artifacts multiplying.
    """

    name: ClassVar[str]
    bounds: ClassVar[Mapping[str, Range]] = {}  # of the fields that are ranges
    counts: ClassVar[tuple[str, ...]] = ()  # those of them that are of whole numbers
    step: ClassVar[Step] = "alone"

    prob: float = 1.0

    def __post_init__(self) -> None:
        if not (_is_number(self.prob) and 0 <= self.prob <= 1):
            raise ValueError(f"{self.name}: prob is {self.prob!r}, expected 0 to 1")
        for field in fields(self):
            if field.name in self.bounds:
                value = _checked_range(
                    self.name, field.name, getattr(self, field.name), self.bounds[field.name]
                )
                if field.name in self.counts and any(v != int(v) for v in value):
                    raise ValueError(f"{self.name}: {field.name} is {value!r}, expected whole numbers")
                object.__setattr__(self, field.name, value)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        """Numbers that fix this artifact for `scan`: all that is needed but image, gradient table and affine."""
        raise NotImplementedError

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        """Canonical `image` (N, X, Y, Z) with the artifact `drawn`; a new tensor."""
        raise NotImplementedError

    @staticmethod
    def displacement(drawn: Drawn, scan: ScanContext, image: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """(X, Y, Z) common shift and (N, M) monomial weights in voxels along phase encoding; see `displace`."""
        raise NotImplementedError

    @staticmethod
    def gains(drawn: Drawn, scan: ScanContext) -> dict[int, Tensor]:
        """{axis: (n,)} gain of the k-space lines; see `filter_lines`."""
        raise NotImplementedError

    @staticmethod
    def hits(drawn: Drawn, n_volumes: int, n_slices: int) -> np.ndarray:
        """(N, S) bool: which slices of which volumes the artifact changed; by default all."""
        return volume_hits(drawn.get("hit_volumes"), n_volumes, n_slices)


def volume_hits(volumes: list[int] | None, n_volumes: int, n_slices: int) -> np.ndarray:
    """(N, S) bool, all slices of `volumes`; of all volumes where None."""
    hit = np.zeros((n_volumes, n_slices), dtype=bool)
    hit[slice(None) if volumes is None else volumes] = True
    return hit


def _checked_range(owner: str, name: str, value: Any, bounds: Range) -> Range:
    try:
        low, high = (value, value) if _is_number(value) else value
    except (TypeError, ValueError):
        raise ValueError(f"{owner}: {name} is {value!r}, expected a number or a pair (low, high)") from None
    if not (_is_number(low) and _is_number(high)):
        raise ValueError(f"{owner}: {name} is {value!r}, expected a number or a pair (low, high)")
    if math.isnan(low) or math.isnan(high) or low > high:
        raise ValueError(f"{owner}: {name} is {value!r}, expected low <= high")
    if low < bounds[0] or high > bounds[1]:
        raise ValueError(f"{owner}: {name} is {value!r}, allowed are {bounds[0]:g} to {bounds[1]:g}")
    return low, high


def _is_number(value: Any) -> bool:
    """Any real number, those of NumPy included, but no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)
