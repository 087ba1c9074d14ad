"""What the random artifacts draw: numbers, directions, subsets, and settings of the scan that are not known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmri_monai.artifacts.engine.artifact import Range
from dmri_monai.artifacts.engine.scan_context import ScanContext

__all__ = [
    "field_seed",
    "generator",
    "normal_numbers",
    "polarity",
    "random_subset",
    "random_vector",
    "readout_time",
    "uniform",
    "whole_number",
]


def uniform(R: np.random.RandomState, span: Range) -> float:
    """One number from U(low, high); low itself where both are equal, infinity included."""
    low, high = span
    return float(low) if low == high else float(R.uniform(low, high))


def whole_number(R: np.random.RandomState, span: Range) -> int:
    """One whole number, low and high included."""
    return int(R.randint(int(span[0]), int(span[1]) + 1))


def normal_numbers(R: np.random.RandomState, *shape: int) -> Any:
    """Nested lists of standard normal numbers."""
    return R.standard_normal(shape).tolist()


def random_vector(R: np.random.RandomState, length: float) -> list[float]:
    """Vector of `length` in a uniformly random direction."""
    vector = R.standard_normal(3)
    return [float(c) for c in vector * (length / np.linalg.norm(vector))]


def field_seed(R: np.random.RandomState) -> int:
    """Seed of a noise field: drawn here, used on the image's device."""
    return int(R.randint(2**31 - 1))


def random_subset(R: np.random.RandomState, candidates: np.ndarray, share: float) -> list[int]:
    """A share of `candidates`, at least one where share > 0, without repetition, ascending."""
    if share <= 0 or len(candidates) == 0:
        return []
    count = min(len(candidates), max(1, round(share * len(candidates))))
    return sorted(int(i) for i in R.choice(candidates, count, replace=False))


def readout_time(R: np.random.RandomState, scan: ScanContext, span: Range) -> float:
    """The scan's total readout time in seconds, or one from U(low, high)."""
    return uniform(R, span) if scan.total_readout_time_s is None else scan.total_readout_time_s


def polarity(R: np.random.RandomState, scan: ScanContext) -> int:
    """The scan's phase-encoding polarity along the canonical axis, or 1 or -1 with equal probability."""
    drawn = 1 if R.uniform() < 0.5 else -1
    return drawn if scan.phase_sign is None else scan.phase_sign


def generator(seed: int, image: Tensor) -> torch.Generator:
    """Torch generator on the device of `image`."""
    return torch.Generator(image.device).manual_seed(seed)
