"""What a random artifact is: a frozen set of parameter ranges that draws numbers and applies drawn"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from dmri_monai.transforms.artifacts.scan import Scan

__all__ = ["Artifact", "Drawn", "Range"]

Range = tuple[float, float]
Drawn = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Base of the random artifacts: ranges in, drawn numbers (JSON-serialisable) out.

    `prob` is the probability that a scan has the artifact at all.  Every other field is a range (low, high)
    unless its class says otherwise.  `draw` is the only random part; `apply` is deterministic given what was
    drawn.
    """

    name: ClassVar[str]
    bounds: ClassVar[dict[str, Range]] = {}  # of the fields that are ranges

    prob: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.prob <= 1:
            raise ValueError(f"{self.name}: prob is {self.prob}, expected 0 to 1")
        for field in fields(self):
            if field.name in self.bounds:
                value = _checked_range(
                    self.name, field.name, getattr(self, field.name), self.bounds[field.name]
                )
                object.__setattr__(self, field.name, value)

    def draw(self, R: np.random.RandomState, scan: Scan) -> Drawn:
        """Numbers that fix this artifact for `scan`; everything `apply` needs that is not in the gradient
        table.
        """
        raise NotImplementedError

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: Scan) -> Tensor:
        """Canonical `image` (N, X, Y, Z) with the artifact `drawn`."""
        raise NotImplementedError

    @staticmethod
    def hits(drawn: Drawn, n_volumes: int, n_slices: int) -> np.ndarray:
        """(N, S) bool for N volumes of S slices: which slices of which volumes the artifact changed; all of
        them by default.
        """
        return np.ones((n_volumes, n_slices), dtype=bool)


def _checked_range(owner: str, name: str, value: Any, bounds: Range) -> Range:
    pair = (value, value) if isinstance(value, int | float) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int | float) for v in pair):
        raise ValueError(f"{owner}: {name} is {value!r}, expected a number or a pair (low, high)")
    low, high = pair
    if math.isnan(low) or math.isnan(high) or low > high:
        raise ValueError(f"{owner}: {name} is {value!r}, expected low <= high")
    if low < bounds[0] or high > bounds[1]:
        raise ValueError(f"{owner}: {name} is {value!r}, allowed are {bounds[0]:g} to {bounds[1]:g}")
    return pair


def uniform(R: np.random.RandomState, span: Range) -> float:
    """One number from U(low, high); low itself where both are equal, infinity included."""
    low, high = span
    return float(low) if low == high else float(R.uniform(low, high))


def whole(R: np.random.RandomState, span: Range) -> int:
    """One whole number, low and high included."""
    return int(R.randint(int(span[0]), int(span[1]) + 1))


def field_seed(R: np.random.RandomState) -> int:
    """Seed of a noise field: drawn here, used on the image's device."""
    return int(R.randint(2**31 - 1))


def some_of(R: np.random.RandomState, candidates: np.ndarray, share: float) -> list[int]:
    """A share of `candidates`, at least one where share > 0, without repetition, ascending."""
    if share <= 0 or len(candidates) == 0:
        return []
    count = min(len(candidates), max(1, round(share * len(candidates))))
    return sorted(int(i) for i in R.choice(candidates, count, replace=False))
