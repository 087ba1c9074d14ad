"""What `docs/results.md` says of an experiment: tables and verdicts, computed from its lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.experiments.tables import (
    KEY_COLUMN,
    Paired,
    choose,
    markdown,
    paired,
    scores,
    spread,
    summary,
    values_of,
)
from benchmarks.experiments.voxelwise import VOXELWISE

__all__ = ["SECTIONS", "verdict"]

Line = Mapping[str, Any]
LESION_COLUMNS = {"average_precision": "AP", "roc_auc": "ROC AUC", "dice": "Dice"}


def verdict(found: Paired, limit: float, larger: bool = True) -> str:
    """Whether the first arm of `found` is better than the second by more than the spread `limit`."""
    gain = found.mean if larger else -found.mean
    if found.n_seeds == 1:
        return "one seed"
    if gain > limit:
        return "better by more than the spread"
    if gain < -limit:
        return "worse by more than the spread"
    return "within the spread"


def _p(value: float) -> str:
    if value != value:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _comparison(first: np.ndarray, second: np.ndarray, larger: bool = True) -> list[str]:
    found = paired(first, second)
    decided = verdict(found, spread(first, second), larger)
    return [str(found), _p(found.p_seeds), _p(found.p_subjects), decided]


COMPARED = ["difference", "p (seeds)", "p (subjects)", "verdict"]


def lesions(lines: Sequence[Line]) -> str:
    """Methods by training-set size and orientation, and the other studies where they were run."""
    parts = [_lesion_sizes(lines), _lesion_claims(lines)]
    titles = {
        "time": "The same time of training, all subjects",
        "parameters": "Number of parameters, all subjects",
        "kernels": "Kernels of two pq layers, all subjects",
    }
    for study, title in titles.items():
        parts.append(f"**{title}**\n\n{_lesion_study(choose(lines, study=study))}")
    return "\n".join(parts)


def _lesion_sizes(lines: Sequence[Line]) -> str:
    data, rows = choose(lines, study="data"), []
    for method in values_of(data, "method"):
        own = choose(data, method=method)
        for n in sorted(values_of(own, "subjects")):
            rows.append(_lesion_row(choose(own, subjects=n), f"{method}, {n} subjects"))
    head = ["arm", "parameters", "steps"]
    head += [f"{name} {test}" for test in ("upright", "turned") for name in LESION_COLUMNS.values()]
    return markdown(head, rows)


def _lesion_row(own: Sequence[Line], name: str) -> list[Any]:
    cells = [
        summary(scores(own, test, column)) for test in ("upright", "turned") for column in LESION_COLUMNS
    ]
    steps = [line["steps"] for line in own if "steps" in line]
    return [name, own[0]["n_parameters"], _range(steps) if steps else "–", *cells]


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


def _lesion_claims(lines: Sequence[Line]) -> str:
    data, rows = choose(lines, study="data"), []
    for rival in ("plain", "plain, rotated", VOXELWISE):
        for method in ("equivariant", "pq"):
            for n in sorted(values_of(data, "subjects")):
                own, other = choose(data, method=method, subjects=n), choose(data, method=rival, subjects=n)
                if len(own) != len(other) or not own:
                    continue
                for test in ("upright", "turned"):
                    a, b = (scores(each, test, "average_precision") for each in (own, other))
                    rows.append([f"{method} − {rival}", n, test, *_comparison(a, b)])
    return "**Differences in AP**\n\n" + markdown(["arms", "subjects", "test heads", *COMPARED], rows)


def _lesion_study(data: Sequence[Line]) -> str:
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for method in values_of(data, "method"):
        for line in choose(data, method=method):
            labels = line["labels"]
            groups.setdefault((method, labels.get("width"), labels.get("reduction")), []).append(line)
    rows = []
    for (method, _, reduction), own in groups.items():
        seconds = np.mean([line["train_seconds"] for line in own])
        name = f"{method}, {reduction}" if reduction else method
        cells = [summary(scores(own, test, "average_precision")) for test in ("upright", "turned")]
        steps = _range([line["steps"] for line in own])
        rows.append([name, own[0]["n_parameters"], steps, f"{seconds:.0f}", len(own), *cells])
    head = ["arm", "parameters", "steps", "seconds", "seeds", "AP upright", "AP turned"]
    return markdown(head, rows) if rows else "Not run at this size.\n"


def pretraining(lines: Sequence[Line]) -> str:
    """Every pretext against none and against the autoencoder."""
    data, rows = choose(lines), []
    groups = dict.fromkeys(
        tuple(line["labels"].get(k) for k in ("architecture", "labelled", "task")) for line in data
    )
    for architecture, labelled, task in groups:
        own = choose(data, architecture=architecture, labelled=labelled, task=task)
        arms = _by_pretext(own, task)
        for name, values in arms.items():
            cells = []
            for rival in ("none", "autoencoder"):
                same = name == rival or rival not in arms or arms[rival].shape != values.shape
                compared = [] if same else _comparison(values, arms[rival], task != "orientation")
                cells += (
                    ["–", "–"] if same else [f"{compared[0]}, {compared[3]}", f"{compared[1]}, {compared[2]}"]
                )
            rows.append([architecture, task, labelled, name, summary(values), *cells])
    head = ["network", "task", "labelled", "pretext", "score"]
    head += [
        cell for rival in ("none", "autoencoder") for cell in (f"against {rival}", "p (seeds), p (subjects)")
    ]
    return markdown(head, rows)


def _by_pretext(lines: Sequence[Line], task: str) -> dict[str, np.ndarray]:
    found = {}
    for pretext in values_of(lines, "pretext"):
        own = choose(lines, pretext=pretext)
        for preset in values_of(own, "preset") or [None]:
            chosen = choose(own, preset=preset) if preset else own
            found[f"{pretext}, {preset}" if preset else pretext] = scores(chosen, "test", KEY_COLUMN[task])
    return found


def generalisation(lines: Sequence[Line]) -> str:
    """Dice on every protocol, and what is lost from the trained one."""
    data = choose(lines)
    methods, rows = values_of(data, "method"), []
    arms = {method: choose(data, method=method) for method in methods}
    for test in data[0]["tests"]:
        row: list[Any] = [test]
        for own in arms.values():
            found, base = scores(own, test, "dice"), scores(own, "as trained", "dice")
            row += [summary(found), str(paired(found, base)) if test != "as trained" else "–"]
        rows.append(row)
    return markdown(["protocol", *(f"{m}{c}" for m in methods for c in ("", ", change"))], rows)


def classical(lines: Sequence[Line]) -> str:
    """Every network against the classical method of the task, over the test subjects."""
    data, rows = choose(lines), []
    for task in values_of(data, "task"):
        baseline = choose(data, task=task, method="classical")
        for method in values_of(choose(data, task=task), "method"):
            values = scores(choose(data, task=task, method=method), "test", KEY_COLUMN[task])
            cells, score = ["–", "–"], str(summary(values))
            if method == "classical":
                score = f"{summary(values).mean:.3f}"  # no seed changes it
            elif baseline:
                rival = scores(baseline, "test", KEY_COLUMN[task])
                found = paired(values.mean(axis=0, keepdims=True), rival)
                cells = [f"{found.mean:+.3f}", _p(found.p_subjects)]
            rows.append([task, method, score, *cells])
    chosen = ", ".join(
        f"{line['labels']['task']} {_listed(line['chosen'])}" for line in choose(data, method="classical")
    )
    table = markdown(["task", "method", "score", "against classical", "p (subjects)"], rows)
    what = (
        "limits of FA and MD (mm²/s); least relative and absolute height of a peak; deconvolution or tensor"
    )
    return f"{table}\nChosen on training subjects ({what}): {chosen}.\n" if chosen else table


def _listed(value: Any) -> str:
    return " and ".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)


SECTIONS = {
    "lesions": lesions,
    "pretraining": pretraining,
    "generalisation": generalisation,
    "classical": classical,
}
