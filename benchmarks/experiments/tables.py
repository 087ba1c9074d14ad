"""From result lines to numbers: scores of heads, mean ± SD over seeds, paired tests, and their correction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

__all__ = ["KEY_COLUMN", "Comparison", "Summary", "choose", "compare", "corrected", "flat", "markdown", "scores",
           "summary", "values_of"]  # fmt: skip

Line = Mapping[str, Any]
KEY_COLUMN = {
    "tissue": "dice",
    "lesion": "average_precision",
    "crossings": "macro_f1",
    "orientation": "angular_error_median_deg",
}
ALPHA = 0.05


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (n - 1) over seeds of the mean over heads; sd is NaN for one seed."""

    mean: float
    sd: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} (1 seed)" if self.n == 1 else f"{self.mean:.3f} ± {self.sd:.3f}"


@dataclass(frozen=True)
class Comparison:
    """First minus second method, over the seeds and test heads that both have; larger is better for the first.

    sd: over seeds of the difference of their means, NaN for one.  same: of the seeds' differences, whether all have
    the sign of the mean.  p: paired t-test over the test heads' means over seeds; NaN below two heads, and for equal
    values.  `adjusted` is p after the correction for all comparisons of a page.
    """

    mean: float
    sd: float
    same: bool
    p: float
    n_seeds: int
    n_heads: int
    adjusted: float = float("nan")

    @property
    def better(self) -> bool:
        """Positive in every seed, two at least, and beyond chance over the heads."""
        return self.mean > 0 and self.decided

    @property
    def worse(self) -> bool:
        return self.mean < 0 and self.decided

    @property
    def decided(self) -> bool:
        return self.n_seeds > 1 and self.same and self.adjusted < ALPHA

    def __str__(self) -> str:
        p = (
            "–"
            if self.adjusted != self.adjusted
            else f"{self.adjusted:.3f}"
            if self.adjusted >= 0.001
            else "< 0.001"
        )
        spread = "" if self.n_seeds == 1 else f" ± {self.sd:.3f}"
        return f"{self.mean:+.3f}{spread} (p {p})"


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
    """Values of the label `name`, as they first come."""
    return list(dict.fromkeys(line["labels"][name] for line in lines if name in line["labels"]))


def scores(lines: Sequence[Line], test: str, column: str) -> np.ndarray:
    """(seeds, heads) of `column` on the cohort `test`; columns of its classes are averaged, NaN passed over."""
    if len({line["seed"] for line in lines}) != len(lines):
        raise ValueError(f"several lines of one seed: {[line['seed'] for line in lines]}")
    return np.array([_nanmean(_columns(line["tests"][test], column)) for line in lines])


def summary(values: np.ndarray) -> Summary:
    """Of (seeds, heads) scores."""
    means = np.nanmean(values, axis=1)
    sd = float(means.std(ddof=1)) if len(means) > 1 else float("nan")
    return Summary(float(means.mean()), sd, len(means))


def compare(
    first: Sequence[Line], second: Sequence[Line], test: str, column: str, lower_is_better: bool = False
) -> Comparison | None:
    """Two methods on the seeds that both have; None where there is none.

    A method without randomness has one line, which then stands for every seed.
    """
    if len(second) == 1 and len(first) > 1 and "recipe" not in second[0]:
        second = [{**second[0], "seed": line["seed"]} for line in first]
    shared = {line["seed"] for line in first} & {line["seed"] for line in second}
    if not shared:
        return None
    a, b = (scores([x for x in lines if x["seed"] in shared], test, column) for lines in (first, second))
    both = np.isfinite(a).all(axis=0) & np.isfinite(b).all(axis=0)
    difference = (b - a if lower_is_better else a - b)[:, both]
    seeds, heads = difference.mean(axis=1), difference.mean(axis=0)
    mean = float(seeds.mean())
    return Comparison(
        mean,
        float(seeds.std(ddof=1)) if len(seeds) > 1 else float("nan"),
        bool((np.sign(seeds) == np.sign(mean)).all()),
        float(stats.ttest_1samp(heads, 0.0).pvalue)
        if len(heads) > 1 and np.ptp(heads) > 1e-9
        else float("nan"),
        *difference.shape,
    )


def corrected(comparisons: Mapping[Any, Comparison | None]) -> dict[Any, Comparison]:
    """The comparisons with p adjusted for their number, by Benjamini and Hochberg."""
    found = {key: one for key, one in comparisons.items() if one is not None}
    known = [key for key, one in found.items() if one.p == one.p]
    if known:
        adjusted = stats.false_discovery_control([found[key].p for key in known])
        for key, value in zip(known, adjusted, strict=True):
            found[key] = Comparison(**{**vars(found[key]), "adjusted": float(value)})
    return found


def flat(line: Line, share: float = 0.15, gain: float = 0.02) -> bool:
    """Whether the last `share` of a training's validations brought at most `gain` (relative) to its best score."""
    values = [score for _, _, score in line["curve"]]
    last = max(1, round(share * len(values)))
    before = values[:-last]
    return bool(before) and max(values[-last:]) <= max(before) + gain * abs(max(before))


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
