"""From result lines to numbers: scores of subjects, mean ± SD over seeds, and paired tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

__all__ = [
    "KEY_COLUMN",
    "Paired",
    "Summary",
    "choose",
    "markdown",
    "paired",
    "scores",
    "spread",
    "summary",
    "values_of",
]

Line = Mapping[str, Any]
KEY_COLUMN = {
    "tissue": "dice",
    "lesion": "average_precision",
    "crossings": "macro_f1",
    "orientation": "angular_error_median_deg",
}
ORDER = (
    "classical", "voxelwise", "plain", "plain, rotated", "plain, wide", "plain, whole scans", "equivariant", "pq",
    *KEY_COLUMN, "all", "light", "normal", "strong",
)  # fmt: skip


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (n - 1) over seeds of the mean over subjects; sd is NaN for one seed."""

    mean: float
    sd: float
    n: int

    def __str__(self) -> str:
        few = " (2 seeds)" if self.n == 2 else ""
        return f"{self.mean:.3f} (1 seed)" if self.n == 1 else f"{self.mean:.3f} ± {self.sd:.3f}{few}"


@dataclass(frozen=True)
class Paired:
    """First minus second arm: mean and SD over seeds of the difference, and p of two paired t-tests.

    p_seeds: over the seeds' means.  p_subjects: over the test subjects' means over seeds.  NaN below two pairs and
    for equal values.
    """

    mean: float
    sd: float
    p_seeds: float
    p_subjects: float
    n_seeds: int
    n_subjects: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f}" if self.n_seeds == 1 else f"{self.mean:+.3f} ± {self.sd:.3f}"


def choose(lines: Sequence[Line], **labels: Any) -> list[Line]:
    """The lines that were tested and have these labels, ordered by seed.

    Of several with the same labels and seed, made under other settings, the last.
    """
    found = {
        (json.dumps(line["labels"], sort_keys=True), line["seed"]): line
        for line in lines
        if line["tests"] and all(line["labels"].get(k) == v for k, v in labels.items())
    }
    return sorted(found.values(), key=lambda line: line["seed"])


def values_of(lines: Sequence[Line], name: str) -> list[Any]:
    """Values of the label `name`: methods, tasks and presets in the order of the page, others as they first come."""
    found = dict.fromkeys(line["labels"][name] for line in lines if name in line["labels"])
    return sorted(found, key=lambda value: ORDER.index(value) if value in ORDER else len(ORDER))


def scores(lines: Sequence[Line], test: str, column: str) -> np.ndarray:
    """(seeds, subjects) of `column` on the cohort `test`; columns of its classes are averaged, NaN passed over."""
    if len({line["seed"] for line in lines}) != len(lines):
        raise ValueError(f"several lines of one seed: {[line['seed'] for line in lines]}")
    rows = [_columns(line["tests"][test], column) for line in lines]
    with np.errstate(invalid="ignore"):
        return np.array([_nanmean(row) for row in rows])


def summary(values: np.ndarray) -> Summary:
    """Of (seeds, subjects) scores."""
    means = np.nanmean(values, axis=1)
    return Summary(
        float(means.mean()), float(means.std(ddof=1)) if len(means) > 1 else float("nan"), len(means)
    )


def paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """Compare (seeds, subjects) scores of the same seeds and subjects; subjects without a value in one are left out."""
    if first.shape != second.shape:
        raise ValueError(f"scores have shapes {first.shape} and {second.shape}, expected the same")
    both = np.isfinite(first).all(axis=0) & np.isfinite(second).all(axis=0)
    a, b = first[:, both], second[:, both]
    difference = (a - b).mean(axis=1)
    sd = float(difference.std(ddof=1)) if len(difference) > 1 else float("nan")
    return Paired(
        float(difference.mean()),
        sd,
        _p(a.mean(axis=1), b.mean(axis=1)),
        _p(a.mean(axis=0), b.mean(axis=0)),
        *a.shape,
    )


def spread(*arms: np.ndarray) -> float:
    """The larger standard deviation over seeds of (seeds, subjects) scores; 0 for one seed."""
    return max(float(np.nan_to_num(summary(arm).sd)) for arm in arms)


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _columns(test: Mapping[str, Sequence[float | None]], column: str) -> np.ndarray:
    found = [v for name, v in test.items() if name == column or name.startswith(f"{column}_")]
    if not found:
        raise ValueError(f"no column {column!r} among {sorted(test)}")
    return np.array(found, dtype=float)


def _nanmean(values: np.ndarray) -> np.ndarray:
    counts = np.isfinite(values).sum(axis=0)
    mean: np.ndarray = np.where(counts > 0, np.nansum(values, axis=0) / np.maximum(counts, 1), np.nan)
    return mean


def _p(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or np.ptp(a - b) == 0:
        return float("nan")
    return float(stats.ttest_rel(a, b).pvalue)
