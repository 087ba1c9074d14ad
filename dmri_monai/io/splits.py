"""Parts of a data set for training, validation and testing: by subject, never by run."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

__all__ = ["split", "split_fold"]

Item = TypeVar("Item", bound=Mapping[str, Any])


def split(items: Sequence[Item], fractions: Mapping[str, float], *, seed: int = 0) -> dict[str, list[Item]]:
    """Parts of `items` by subject, never by run: name -> items, in the order given.

    fractions: name -> share of the subjects, summing to 1, e.g. {"train": 0.6, "val": 0.2, "test": 0.2}; a
    share above 0 gets at least one subject. The draw depends on the set of subjects and `seed` alone, not on
    the order of items.
    """
    if not fractions or min(fractions.values()) < 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ValueError(f"fractions are {dict(fractions)}, expected shares of at least 0 that sum to 1")
    subjects = _shuffled_subjects(items, seed)
    sizes = _sizes(len(subjects), fractions)
    bounds = iter(subjects)
    return _by_subject(items, {name: {next(bounds) for _ in range(size)} for name, size in sizes.items()})


def split_fold(
    items: Sequence[Item], fold: int, n_folds: int, *, seed: int | None = 0
) -> dict[str, list[Item]]:
    """Parts "train", "val" and "test" of fold 0 ... n_folds - 1 of a cross-validation by subject.

    Fold k tests on the k-th group of subjects, validates on the next (cyclic) and trains on the others;
    groups differ by at most one subject. seed=None keeps subjects in sorted order instead of shuffling them.
    """
    subjects = _shuffled_subjects(items, seed)
    if not 3 <= n_folds <= len(subjects):
        raise ValueError(f"n_folds is {n_folds} for {len(subjects)} subjects, expected 3 to {len(subjects)}")
    if not 0 <= fold < n_folds:
        raise ValueError(f"fold is {fold}, expected 0 to {n_folds - 1}")
    cuts = [len(subjects) * k // n_folds for k in range(n_folds + 1)]
    groups = [set(subjects[a:b]) for a, b in pairwise(cuts)]
    test, val = groups[fold], groups[(fold + 1) % n_folds]
    return _by_subject(items, {"train": set(subjects) - test - val, "val": val, "test": test})


def _shuffled_subjects(items: Sequence[Item], seed: int | None) -> list[str]:
    subjects = sorted({str(item["subject"]) for item in items})
    if seed is not None:
        random.Random(seed).shuffle(subjects)
    return subjects


def _sizes(count: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers nearest to the shares (largest remainders), one at least for a share above 0."""
    wanted = {name: share for name, share in fractions.items() if share > 0}
    if count < len(wanted):
        raise ValueError(f"{count} subjects cannot be split into {len(wanted)} parts: {dict(fractions)}")
    sizes = {name: max(1, int(count * share + 1e-9)) if share > 0 else 0 for name, share in fractions.items()}
    while sum(sizes.values()) != count:
        step = 1 if sum(sizes.values()) < count else -1
        able = [name for name in wanted if step > 0 or sizes[name] > 1]
        sizes[max(able, key=lambda name: step * (count * wanted[name] - sizes[name]))] += step
    return sizes


def _by_subject(items: Sequence[Item], parts: Mapping[str, set[str]]) -> dict[str, list[Item]]:
    return {
        name: [item for item in items if str(item["subject"]) in chosen] for name, chosen in parts.items()
    }
