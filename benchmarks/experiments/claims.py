"""The papers' questions as tests of the lines, and the sentences of the summary.

A rival that did not learn its task proves nothing, and no claim is made against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.experiments.figures import pretext_name
from benchmarks.experiments.tables import (
    KEY_COLUMN,
    Comparison,
    choose,
    compare,
    corrected,
    flat,
    scores,
    summary,
    values_of,
)
from benchmarks.experiments.trivial import CLASSICAL, TRIVIAL

__all__ = ["Evidence", "summary_lines"]

Line = Mapping[str, Any]
Experiments = Mapping[str, Sequence[Line]]
OURS = ("equivariant", "any", "pq")
LOWER = ("orientation",)
NO_CLAIM = "this rival did not learn; no claim"
ARTIFACTS = "artifacts, normal"  # the pretext of Weninger et al. 2022


@dataclass(frozen=True)
class Evidence:
    """The lines of one size and all comparisons that its page makes, corrected for their number."""

    experiments: Experiments

    def __post_init__(self) -> None:
        made = dict(_comparisons(self.experiments))
        object.__setattr__(self, "comparisons", corrected(made))

    comparisons: Mapping[tuple[Any, ...], Comparison] = None  # type: ignore[assignment]

    def mean(self, experiment: str, test: str, column: str, **labels: Any) -> float:
        """Mean score over seeds and heads; NaN where it was not run."""
        own = choose(self.experiments[experiment], **labels)
        return summary(scores(own, test, column)).mean if own else float("nan")

    def best_trivial(self, task: str, heads: int | None = None) -> tuple[str, float]:
        """The trivial method with the best mean on the protocol of the training, and that mean.

        heads: that learn lesions; None: all.
        """
        return self.best_of(TRIVIAL, task, heads)

    def best_of(self, methods: Sequence[str], task: str, heads: int | None = None) -> tuple[str, float]:
        """The one of `methods` with the best mean, and that mean; "" and NaN where none was run."""
        where, test, labels = self.place(task, heads)
        found = {name: self.mean(where, test, KEY_COLUMN[task], method=name, **labels) for name in methods}
        known = {name: value for name, value in found.items() if value == value}
        if not known:
            return "", float("nan")
        pick = min if task in LOWER else max
        name = pick(known, key=lambda n: known[n])
        return name, known[name]

    def learned(self, task: str, method: str, heads: int | None = None) -> bool | None:
        """Whether a network beats every trivial method of its task and heads in every seed.

        None where either was not run.
        """
        where, test, labels = self.place(task, heads)
        own = choose(self.experiments[where], method=method, **labels)
        _, limit = self.best_trivial(task, heads)
        if not own or limit != limit:
            return None
        means = np.nanmean(scores(own, test, KEY_COLUMN[task]), axis=1)
        return bool((means < limit).all() if task in LOWER else (means > limit).all())

    def networks(self, task: str, ours: bool, heads: int | None = None) -> list[str]:
        """Networks that were trained from scratch."""
        where, _, labels = self.place(task, heads)
        lines = [o for o in choose(self.experiments[where], **labels) if "recipe" in o]
        return [m for m in values_of(lines, "method") if (m in OURS) == ours]

    def failed(self, task: str, method: str, heads: int | None = None) -> bool:
        """Whether a rival is known not to have learned."""
        return method in self.networks(task, False, heads) and self.learned(task, method, heads) is False

    def rivals(self, task: str, heads: int | None = None) -> list[str]:
        """Networks of others that learned the task, and classical methods."""
        where, _, labels = self.place(task, heads)
        known = values_of(choose(self.experiments[where], **labels), "method")
        learned = [m for m in self.networks(task, False, heads) if self.learned(task, m, heads)]
        return learned + [m for m in CLASSICAL if m in known]

    def place(self, task: str, heads: int | None = None) -> tuple[str, str, dict[str, Any]]:
        """Experiment, test cohort and labels of trainings from scratch."""
        if task != "lesion":
            return "generalisation", "as trained", {"task": task}
        every = values_of(choose(self.experiments["lesions"], study="data"), "heads")
        return "lesions", "upright", {"study": "data", "heads": heads or max(every, default=0)}


def _comparisons(experiments: Experiments) -> Iterator[tuple[tuple[Any, ...], Comparison | None]]:
    """(experiment, what, ..., first, second) -> comparison; all that the page shows."""
    yield from _of_lesions(choose(experiments["lesions"], study="data"))
    yield from _of_generalisation(choose(experiments["generalisation"]))
    yield from _of_pretraining(choose(experiments["pretraining"]))


def _of_lesions(data: Sequence[Line]) -> Iterator[tuple[tuple[Any, ...], Comparison | None]]:
    methods = values_of(data, "method")
    for heads in sorted(values_of(data, "heads")):
        for own in (m for m in methods if m in OURS):
            for rival in (m for m in methods if m not in OURS):
                a, b = (choose(data, method=m, heads=heads) for m in (own, rival))
                for test in ("upright", "turned"):
                    yield ("lesions", heads, test, own, rival), compare(a, b, test, "average_precision")


def _of_generalisation(data: Sequence[Line]) -> Iterator[tuple[tuple[Any, ...], Comparison | None]]:
    for task in values_of(data, "task"):
        lines = choose(data, task=task)
        methods = values_of(lines, "method")
        column, lower = KEY_COLUMN[task], task in LOWER
        for own in (m for m in methods if m in OURS):
            for rival in (m for m in methods if m != own):
                a, b = choose(lines, method=own), choose(lines, method=rival)
                yield ("generalisation", task, own, rival), compare(a, b, "as trained", column, lower)


def _of_pretraining(data: Sequence[Line]) -> Iterator[tuple[tuple[Any, ...], Comparison | None]]:
    for task in values_of(data, "task"):
        for method in values_of(data, "method"):
            for labelled in sorted(values_of(data, "labelled")):
                own = choose(data, task=task, method=method, labelled=labelled)
                groups: dict[str, list[Line]] = {}
                for line in own:
                    groups.setdefault(pretext_name(line), []).append(line)
                for name, lines in groups.items():
                    for rival in ("none", "autoencoder"):
                        if rival in groups and name not in ("none", rival):
                            found = compare(lines, groups[rival], "test", KEY_COLUMN[task], task in LOWER)
                            yield ("pretraining", task, method, labelled, name, rival), found


def summary_lines(evidence: Evidence) -> list[str]:
    """Sentences of the summary, each from the lines; those whose experiment was not run are left out."""
    return [sentence for part in PARTS for sentence in part(evidence)]


def _learned(evidence: Evidence) -> list[str]:
    """Which networks learned each task, and by how much they beat the best trivial method."""
    sentences = []
    for task in KEY_COLUMN:
        everyone = [*evidence.networks(task, True), *evidence.networks(task, False)]
        name, limit = evidence.best_trivial(task)
        if not everyone or not name:
            continue
        where, test, labels = evidence.place(task)
        means = {m: evidence.mean(where, test, KEY_COLUMN[task], method=m, **labels) for m in everyone}
        learned = ", ".join(f"`{m}` {means[m]:.2f}" for m in everyone if evidence.learned(task, m))
        failed = ", ".join(f"`{m}` {means[m]:.2f}" for m in everyone if not evidence.learned(task, m))
        text = f"**{task.capitalize()}.** Best trivial method: {name}, {_unit(task)} {limit:.2f}"
        classical, reached = evidence.best_of(CLASSICAL, task)
        text += f"; best classical one: {classical}, {reached:.2f}." if classical else "."
        text += f" Learned: {learned or 'none'}."
        sentences.append(text + (f" Did not learn, so no claim is made against: {failed}." if failed else ""))
    return sentences


def _unit(task: str) -> str:
    return {"lesion": "AP", "tissue": "Dice", "crossings": "macro-F1", "orientation": "error (degrees)"}[task]


def _lesion_heads(evidence: Evidence) -> list[str]:
    """Ours against the best rival that learned from as many heads, upright and turned."""
    data = choose(evidence.experiments["lesions"], study="data")
    sentences = []
    for own in (m for m in values_of(data, "method") if m in OURS):
        for test in ("upright", "turned"):
            parts = []
            for heads in sorted(values_of(data, "heads")):
                rivals = evidence.rivals("lesion", heads)
                pairs = {r: evidence.comparisons.get(("lesions", heads, test, own, r)) for r in rivals}
                known = {r: c for r, c in pairs.items() if c is not None}
                if known:
                    rival = min(known, key=lambda r: known[r].mean)
                    parts.append(
                        f"{heads}: {known[rival].mean:+.2f} against `{rival}`, {_word(known[rival])}"
                    )
            if parts:
                text = f"**{own}, {test} lesions**, AP against the best rival that learned, by training heads"
                sentences.append(f"{text}: {'; '.join(parts)}.")
    return sentences


def _word(comparison: Comparison) -> str:
    if comparison.n_seeds == 1:
        return "one seed alone"
    return "better" if comparison.better else "worse" if comparison.worse else "not shown to differ"


def _turning(evidence: Evidence) -> list[str]:
    """What turning the test heads costs each network that learned."""
    where, _, labels = evidence.place("lesion")
    parts = []
    for method in [*evidence.networks("lesion", True), *evidence.rivals("lesion")]:
        own = choose(evidence.experiments[where], method=method, **labels)
        change = summary(
            scores(own, "turned", "average_precision") - scores(own, "upright", "average_precision")
        )
        parts.append(f"`{method}` {change.mean:+.2f}")
    return [f"**Turning the test heads** changes the AP of lesions by: {', '.join(parts)}."] if parts else []


def _precision(evidence: Evidence) -> list[str]:
    """What float32 instead of bfloat16 changes, on the seeds that have both."""
    lines = evidence.experiments["lesions"]
    where, _, labels = evidence.place("lesion")
    parts = []
    for method in values_of(choose(lines, study="float32"), "method"):
        exact, usual = choose(lines, study="float32", method=method), choose(lines, method=method, **labels)
        shared = {line["seed"] for line in exact} & {line["seed"] for line in usual}
        if shared:
            means = [
                [summary(scores([o for o in own if o["seed"] in shared], test, "average_precision")).mean
                 for test in ("upright", "turned")]
                for own in (usual, exact)
            ]  # fmt: skip
            (a, b), (c, d) = means
            seeds = "1 seed" if len(shared) == 1 else f"{len(shared)} seeds"
            parts.append(f"`{method}` {a:.2f} to {c:.2f} upright, {b:.2f} to {d:.2f} turned ({seeds})")
    return (
        [f"**Float32 instead of bfloat16** changes the AP of lesions, all heads: {'; '.join(parts)}."]
        if parts
        else []
    )


def _pretraining(evidence: Evidence) -> list[str]:
    """What artifacts bring by the number of labelled heads, and how often any pretext differs from none."""
    data = choose(evidence.experiments["pretraining"])
    heads, methods = sorted(values_of(data, "labelled")), values_of(data, "method")
    sentences = []
    for rival in ("none", "autoencoder"):
        of_methods = []
        for method in methods:
            gains = []
            for task in values_of(data, "task"):
                known = evidence.comparisons
                own = [known.get(("pretraining", task, method, number, ARTIFACTS, rival)) for number in heads]
                if any(own):
                    gains.append(f"{task} {' / '.join(_marked(c) for c in own)}")
            if gains:
                of_methods.append(f"`{method}` {', '.join(gains)}")
        if of_methods:
            text = f"**Pretraining with artifacts against {rival}**, gain with {' / '.join(map(str, heads))}"
            sentences.append(f"{text} labelled heads (bold where shown): {'; '.join(of_methods)}.")
    counts = [text for method in methods if (text := _counts(evidence, method))]
    if counts:
        sentences.append(f"**Every pretext against none**, comparisons: {'; '.join(counts)}.")
    return sentences


def _marked(comparison: Comparison | None) -> str:
    if comparison is None:
        return "–"
    gain = f"{comparison.mean:+.2f}"
    return f"**{gain}**" if comparison.better or comparison.worse else gain


def _counts(evidence: Evidence, method: str) -> str:
    """Of all pretexts and numbers of labelled heads together, task by task; "" for a network that was not run."""
    parts = []
    for task in KEY_COLUMN:
        found = [
            c for key, c in evidence.comparisons.items()
            if key[0] == "pretraining" and key[1:3] == (task, method) and key[5] == "none"
        ]  # fmt: skip
        if found:
            better, worse = sum(c.better for c in found), sum(c.worse for c in found)
            parts.append(f"{task} {better} of {len(found)} better, {worse} worse")
    return f"`{method}` {', '.join(parts)}" if parts else ""


def _protocols(evidence: Evidence) -> list[str]:
    """The change that costs each network most tissue Dice."""
    data = [o for o in choose(evidence.experiments["generalisation"], task="tissue") if "recipe" in o]
    parts = []
    for method in values_of(data, "method"):
        own = choose(data, method=method)
        means = {test: summary(scores(own, test, "dice")).mean for test in own[0]["tests"]}
        worst = min((t for t in means if t != "as trained"), key=lambda t: means[t], default=None)
        if worst:
            parts.append(f"{method} {means[worst] - means['as trained']:+.2f} ({worst})")
    return (
        [f"**Other protocols**: the change that costs most tissue Dice: {', '.join(parts)}."] if parts else []
    )


def _any(evidence: Evidence) -> list[str]:
    """The architecture `any` beside the equivariant network."""
    parts = [
        f"{key[1]} {comparison.mean:+.2f} ({_word(comparison)})"
        for key, comparison in evidence.comparisons.items()
        if key[0] == "generalisation" and key[2:] == ("any", "equivariant")
    ]
    return (
        [f"**`any` against the equivariant network** (positive: `any` is better): {', '.join(parts)}."]
        if parts
        else []
    )


def _flat(evidence: Evidence) -> list[str]:
    """How many trainings ended flat."""
    every = [line for name in ("lesions", "generalisation") for line in choose(evidence.experiments[name])]
    curved = [line for line in every if "curve" in line]
    if not curved:
        return []
    return [
        f"**Curves**: {sum(map(flat, curved))} of {len(curved)} trainings from scratch ended flat: the last seventh of "
        "their validations brought at most 2 % of the best score."
    ]


def _missing(evidence: Evidence) -> list[str]:
    """Questions without an answer yet."""
    parts: list[tuple[str, str, dict[str, Any]]] = [
        ("lesions", "lesions", {}),
        ("pretraining on simulated scans", "pretraining", {"on": "simulated"}),
        ("pretraining on real scans", "pretraining", {"on": "real"}),
        ("pretraining for crossings", "pretraining", {"task": "crossings"}),
        ("pretraining for orientation", "pretraining", {"task": "orientation"}),
        ("other protocols", "generalisation", {}),
        ("crossings", "generalisation", {"task": "crossings"}),
        ("orientation", "generalisation", {"task": "orientation"}),
        ("the architecture `any`", "generalisation", {"method": "any"}),
    ]
    open_ = [text for text, name, labels in parts if not choose(evidence.experiments[name], **labels)]
    return [f"**Not run yet by these rules, so nothing is said**: {'; '.join(open_)}."] if open_ else []


PARTS: tuple[Callable[[Evidence], list[str]], ...] = (
    _learned, _lesion_heads, _turning, _precision, _pretraining, _protocols, _any, _flat, _missing,
)  # fmt: skip
