"""One figure a question, drawn from the lines alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.tables import KEY_COLUMN, choose, scores, summary, values_of
from dmri_monai.io.writing import replacing

__all__ = ["FIGURES", "draw"]

Line = Mapping[str, Any]
Experiments = Mapping[str, Sequence[Line]]
OURS = {"equivariant": "#0072b2", "any": "#56b4e9", "pq": "#009e73"}
RIVALS = {"plain": "#d55e00", "SegResNet": "#a6761d", "DynUNet": "#cc79a7"}
PRETEXTS = {"none": "#666666", "autoencoder": "#e69f00", "artifacts": "#0072b2", "masked": "#009e73"}
GREY = "#888888"  # of methods without a network
MARKERS = {"prevalence": "x", "k-means": "v", "regression": "^", "forest": "s"}
SCORE = {
    "tissue": "Dice",
    "lesion": "average precision",
    "crossings": "macro-F1",
    "orientation": "median error (degrees)",
}


def draw(name: str, experiments: Experiments, path: Path) -> bool:
    """Write the figure `name` to `path`; False where the lines do not hold what it shows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = FIGURES[name](plt, experiments)
        if figure is None:
            return False
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as (temporary,):
            figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None}, bbox_inches="tight")
        plt.close(figure)
    return True


def _style(method: str) -> dict[str, Any]:
    """Colour of the network; dashed where it learned from turned heads, dotted with invariants."""
    name, _, more = method.partition(", ")
    colour = {**OURS, **RIVALS}.get(name, GREY)
    lines = {"rotated": "--", "invariants": ":"}
    known = {"prevalence": ":", "k-means": "-.", "regression": "--", "forest": "-"}
    return {"color": colour, "linestyle": lines.get(more, "-") if colour != GREY else known.get(name, "-")}


def _legend(figure: Any, axes: Any) -> None:
    found = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(found.values(), found.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _against(
    axis: Any, points: Sequence[tuple[float, Sequence[Line]]], test: str, column: str, **style: Any
) -> None:
    """Mean ± SD over seeds of every point (x, lines)."""
    found = [(x, summary(scores(lines, test, column))) for x, lines in points if lines]
    if found:
        sds = [np.nan_to_num(s.sd) for _, s in found]
        style = {"marker": "o", "ms": 4, "capsize": 2, **style}
        axis.errorbar([x for x, _ in found], [s.mean for _, s in found], sds, **style)


def _lesions(plt: Any, experiments: Experiments) -> Any:
    data = choose(experiments["lesions"], study="data")
    if not data:
        return None
    heads = sorted(values_of(data, "heads"))
    columns = {
        "average_precision": "average precision",
        "roc_auc": "area under the ROC curve",
        "dice": "Dice",
    }
    figure, axes = plt.subplots(2, 3, figsize=(9.5, 5.6), sharex=True, sharey="col")
    for row, test in zip(axes, ("upright", "turned"), strict=True):
        for axis, (column, title) in zip(row, columns.items(), strict=True):
            methods = values_of(data, "method")
            for i, method in enumerate(methods):
                beside = 1.02 ** (i - len(methods) / 2)  # so that no point hides another
                points = [(n * beside, choose(data, method=method, heads=n)) for n in heads]
                _against(
                    axis,
                    points,
                    test,
                    column,
                    label=method,
                    marker=MARKERS.get(method, "o"),
                    **_style(method),
                )
            axis.set_title(f"{title}, {test}")
            axis.set_xscale("log")
            axis.set_xticks(heads, [str(n) for n in heads])
            axis.minorticks_off()
    for axis in axes[1]:
        axis.set_xlabel("training heads")
    _legend(figure, axes.flat)
    return figure


def _parameters(plt: Any, experiments: Experiments) -> Any:
    lines = experiments["lesions"]
    data = [one for one in choose(lines) if "n_parameters" in one and one["labels"]["study"] != "float32"]
    if not choose(lines, study="parameters"):
        return None
    most = max(one["learners"] for one in data)
    figure, axes = plt.subplots(1, 2, figsize=(8.0, 3.0), sharey=True)
    for axis, test in zip(axes, ("upright", "turned"), strict=True):
        for method in values_of(data, "method"):
            own = [one for one in data if one["labels"]["method"] == method and one["learners"] == most]
            counts = sorted({one["n_parameters"] for one in own})
            points = [(n, _one_a_seed([o for o in own if o["n_parameters"] == n])) for n in counts]
            _against(axis, points, test, "average_precision", label=method, **_style(method))
        axis.set_xscale("log")
        axis.set_xlabel("parameters")
        axis.set_title(f"{test} heads")
    axes[0].set_ylabel("average precision")
    _legend(figure, axes)
    return figure


def _one_a_seed(lines: Sequence[Line]) -> list[Line]:
    return list({one["seed"]: one for one in lines}.values())


def _pretraining(plt: Any, experiments: Experiments) -> Any:
    data = choose(experiments["pretraining"])
    networks = _networks(data)
    tasks = [t for t in KEY_COLUMN if choose(data, task=t, pretext="none")]
    if not networks:
        return None
    figure, axes = plt.subplots(
        len(networks),
        len(tasks),
        figsize=(3.1 * len(tasks), 2.7 * len(networks)),
        squeeze=False,
        sharey="col",
    )
    preset = _first_preset(data)
    for row, method in zip(axes, networks, strict=True):
        for axis, task in zip(row, tasks, strict=True):
            for pretext, colour in PRETEXTS.items():
                more = {} if pretext == "none" else {"on": "simulated"}
                more |= {"preset": preset} if pretext == "artifacts" else {}
                own = choose(data, method=method, task=task, pretext=pretext, **more)
                numbers = sorted(values_of(own, "labelled"))
                points = [(n, choose(own, labelled=n)) for n in numbers]
                _against(axis, points, "test", KEY_COLUMN[task], label=pretext, color=colour)
            axis.set_title(f"{task}, {method}")
            axis.set_xlabel("labelled heads")
            axis.set_ylabel(SCORE[task])
            ticks = sorted(values_of(choose(data, pretext="none"), "labelled"))
            axis.set_xscale("log")
            axis.set_xticks(ticks, [str(n) for n in ticks])
            axis.minorticks_off()
    _legend(figure, axes.flat)
    return figure


def _networks(data: Sequence[Line]) -> list[str]:
    return [
        m for m in values_of(data, "method") if m not in MARKERS and choose(data, method=m, pretext="none")
    ]


def _first_preset(data: Sequence[Line]) -> str:
    presets = values_of(choose(data, pretext="artifacts"), "preset")
    return presets[0] if presets else "normal"


def _presets(plt: Any, experiments: Experiments) -> Any:
    """Every pretext at the number of labelled heads where all were tried, real scans included."""
    data = choose(experiments["pretraining"], labelled=2)
    names = list(dict.fromkeys(pretext_name(one) for one in data if "pretext" in one["labels"]))
    tasks = [t for t in KEY_COLUMN if choose(data, task=t, pretext="none")]
    if len(names) < 3:
        return None
    networks = _networks(data)
    figure, axes = plt.subplots(1, len(tasks), figsize=(3.3 * len(tasks), 3.2), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for i, method in enumerate(networks):
            for j, name in enumerate(names):
                own = [o for o in choose(data, task=task, method=method) if pretext_name(o) == name]
                if own:
                    means = np.nanmean(scores(own, "test", KEY_COLUMN[task]), axis=1)
                    x, colour = j + 0.2 * i, _style(method)["color"]
                    axis.plot(np.full(len(means), x), means, "o", ms=4, color=colour, alpha=0.6)
                    axis.plot([x], [means.mean()], "_", ms=12, color=colour, label=method)
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right")
        axis.set_title(task)
        axis.set_ylabel(SCORE[task])
    _legend(figure, axes[0])
    return figure


def pretext_name(line: Line) -> str:
    """Pretext, preset and where, as tables and figures name them."""
    labels = line["labels"]
    name = labels.get("pretext", "")
    name += f", {labels['preset']}" if "preset" in labels else ""
    return f"{name}, real scans" if labels.get("on") == "real" else name


def _generalisation(plt: Any, experiments: Experiments) -> Any:
    data = [o for o in choose(experiments["generalisation"], task="tissue") if "recipe" in o]
    if not data:
        return None
    tests = list(data[0]["tests"])
    methods = values_of(data, "method")
    figure, axis = plt.subplots(figsize=(8.0, 3.4))
    for i, method in enumerate(methods):
        found = [summary(scores(choose(data, method=method), test, "dice")) for test in tests]
        style = _style(method)
        axis.errorbar(
            np.arange(len(tests)) + 0.12 * (i - (len(methods) - 1) / 2), [f.mean for f in found],
            [np.nan_to_num(f.sd) for f in found], fmt="o" if style["linestyle"] == "-" else "s", ms=4, capsize=2,
            label=method, color=style["color"], mfc=style["color"] if style["linestyle"] == "-" else "white",
        )  # fmt: skip
    axis.set_xticks(range(len(tests)), tests, rotation=45, ha="right")
    axis.set_ylabel("Dice of tissue")
    _legend(figure, [axis])
    return figure


def _methods(plt: Any, experiments: Experiments) -> Any:
    """All methods on the protocol of the training, a point a head: networks old and new beside those without one."""
    data = choose(experiments["generalisation"])
    tasks = [t for t in KEY_COLUMN if choose(data, task=t)]
    if not tasks:
        return None
    figure, axes = plt.subplots(1, len(tasks), figsize=(3.4 * len(tasks), 3.4), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        methods = values_of(choose(data, task=task), "method")
        for i, method in enumerate(methods):
            heads = scores(choose(data, task=task, method=method), "as trained", KEY_COLUMN[task]).mean(
                axis=0
            )
            colour = _style(method)["color"]
            axis.plot(np.full(len(heads), i), heads, "o", ms=4, color=colour, alpha=0.5)
            axis.plot([i], [np.nanmean(heads)], "_", ms=16, color=colour)
        axis.set_xticks(range(len(methods)), methods, rotation=60, ha="right")
        axis.set_title(task)
        axis.set_ylabel(SCORE[task])
    return figure


def _curves(plt: Any, experiments: Experiments) -> Any:
    """Validation during every training from scratch on all heads, seed 0."""
    tasks = {"lesion": "lesions", "tissue": "generalisation", "crossings": "generalisation",
             "orientation": "generalisation"}  # fmt: skip
    shown = {}
    for task, experiment in tasks.items():
        found = [o for o in choose(experiments[experiment]) if o.get("task") == task and o.get("curve")]
        most = max((o["learners"] for o in found), default=0)
        first = [o for o in found if o["learners"] == most and o["seed"] == 0]
        first = [o for o in first if o["labels"].get("study", "data") == "data"]
        if first:
            shown[task] = first
    if not shown:
        return None
    figure, axes = plt.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.0), squeeze=False)
    for axis, (task, lines) in zip(axes[0], shown.items(), strict=True):
        for line in lines:
            steps, _, values = np.array(line["curve"]).T
            axis.plot(
                steps, np.abs(values), label=line["labels"]["method"], **_style(line["labels"]["method"])
            )
        axis.set_title(task)
        axis.set_xlabel("step")
        axis.set_ylabel(f"{SCORE[task]}, validation")
    _legend(figure, axes[0])
    return figure


FIGURES: dict[str, Callable[[Any, Experiments], Any]] = {
    "lesions": _lesions,
    "parameters": _parameters,
    "pretraining": _pretraining,
    "presets": _presets,
    "generalisation": _generalisation,
    "methods": _methods,
    "curves": _curves,
}
