"""One figure an experiment, drawn from its lines alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.tables import KEY_COLUMN, choose, scores, summary, values_of
from dmri_monai.io.writing import replacing

__all__ = ["FIGURES", "draw"]

Line = Mapping[str, Any]
COLOURS = {
    "equivariant": "#0072b2", "pq": "#009e73", "plain": "#d55e00", "plain, rotated": "#e69f00",
    "plain, whole scans": "#e69f00", "classical": "#666666", "voxelwise": "#666666",
}  # fmt: skip
SCORE = {
    "tissue": "Dice",
    "lesion": "average precision",
    "crossings": "macro-F1",
    "orientation": "median angular error (degrees)",
}


def draw(experiment: str, lines: Sequence[Line], path: Path) -> bool:
    """Write the figure of `experiment` to `path`; False where the lines do not hold what it shows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = FIGURES[experiment](plt, lines)
        if figure is None:
            return False
        figure.tight_layout()
        with replacing(path) as (temporary,):
            figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
        plt.close(figure)
    return True


def _lesions(plt: Any, lines: Sequence[Line]) -> Any:
    data = choose(lines, study="data")
    if not data:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.2), sharey=True)
    for axis, test in zip(axes, ("upright", "turned"), strict=True):
        for method in values_of(data, "method"):
            shares = sorted(values_of(choose(data, method=method), "share"))
            found = [
                summary(scores(choose(data, method=method, share=s), test, "average_precision"))
                for s in shares
            ]
            means, sds = [f.mean for f in found], [np.nan_to_num(f.sd) for f in found]
            axis.errorbar(
                [100 * s for s in shares], means, sds, label=method, color=COLOURS.get(method),
                marker="o", capsize=3,
            )  # fmt: skip
        axis.set_title(f"{test} test heads")
        axis.set_xlabel("share of the training subjects (%)")
    axes[0].set_ylabel("average precision")
    axes[1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _pretraining(plt: Any, lines: Sequence[Line]) -> Any:
    data = choose(lines)
    tasks = values_of(data, "task")
    if not data:
        return None
    numbers = sorted(values_of(data, "labelled"))
    shape = len(numbers), len(tasks)
    figure, axes = plt.subplots(*shape, figsize=(3.0 * shape[1], 3.2 * shape[0]), squeeze=False)
    pretexts = values_of(data, "pretext")
    for axis, (labelled, task) in zip(axes.flat, product(numbers, tasks), strict=True):
        for i, network in enumerate(values_of(data, "architecture")):
            for j, pretext in enumerate(pretexts):
                chosen = choose(
                    data,
                    task=task,
                    architecture=network,
                    pretext=pretext,
                    labelled=labelled,
                    **_main(pretext),
                )
                if chosen:
                    means = np.nanmean(scores(chosen, "test", KEY_COLUMN[task]), axis=1)
                    axis.plot(
                        np.full(len(means), j + 0.25 * i), means, "o", color=COLOURS[network], alpha=0.6
                    )
                    axis.plot([j + 0.25 * i], [means.mean()], "_", ms=14, color=COLOURS[network],
                              label=network if j == 0 else None)  # fmt: skip
        axis.set_xticks(range(len(pretexts)), pretexts, rotation=30, ha="right")
        axis.set_title(f"{task}, {labelled} labelled")
        axis.set_ylabel(SCORE[task])
    axes[0][-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _main(pretext: str) -> dict[str, str]:
    return {"preset": "all"} if pretext == "artifacts" else {}


def _generalisation(plt: Any, lines: Sequence[Line]) -> Any:
    data = choose(lines)
    if not data:
        return None
    tests = list(data[0]["tests"])
    figure, axis = plt.subplots(figsize=(7.5, 3.4))
    methods = values_of(data, "method")
    for i, method in enumerate(methods):
        found = [summary(scores(choose(data, method=method), test, "dice")) for test in tests]
        axis.errorbar(
            np.arange(len(tests)) + 0.15 * (i - (len(methods) - 1) / 2), [f.mean for f in found],
            [np.nan_to_num(f.sd) for f in found], fmt="o", capsize=3, label=method, color=COLOURS.get(method),
        )  # fmt: skip
    axis.set_xticks(range(len(tests)), tests, rotation=45, ha="right")
    axis.set_ylabel("Dice")
    axis.legend(ncol=len(methods), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def _classical(plt: Any, lines: Sequence[Line]) -> Any:
    data = choose(lines)
    tasks = values_of(data, "task")
    if not data:
        return None
    figure, axes = plt.subplots(1, len(tasks), figsize=(2.6 * len(tasks), 3.2), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        methods = values_of(choose(data, task=task), "method")
        for i, method in enumerate(methods):
            subjects = scores(choose(data, task=task, method=method), "test", KEY_COLUMN[task]).mean(axis=0)
            axis.plot(np.full(len(subjects), i), subjects, "o", color=COLOURS.get(method), alpha=0.6)
            axis.plot([i], [np.nanmean(subjects)], "_", ms=20, color=COLOURS.get(method))
        axis.set_xticks(range(len(methods)), methods, rotation=30, ha="right")
        axis.set_xlim(-0.5, len(methods) - 0.5)
        axis.set_title(task)
        axis.set_ylabel(SCORE[task])
    return figure


FIGURES = {
    "lesions": _lesions,
    "pretraining": _pretraining,
    "generalisation": _generalisation,
    "classical": _classical,
}
