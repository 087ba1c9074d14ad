"""Write `docs/results.md` and its figures from the JSON lines: no number is typed by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments import generalisation, lesions, pretraining
from benchmarks.experiments.arms import Arm, Recipe
from benchmarks.experiments.claims import NO_CLAIM, Evidence, summary_lines
from benchmarks.experiments.figures import FIGURES, draw, pretext_name
from benchmarks.experiments.methods import METHODS
from benchmarks.experiments.results import Results
from benchmarks.experiments.sizes import SIZES, Size
from benchmarks.experiments.tables import KEY_COLUMN, choose, markdown, scores, summary, values_of
from dmri_monai.io.writing import replacing

__all__ = ["page", "read_lines", "write"]

Line = Mapping[str, Any]
NAMES = ("recipes", "lesions", "pretraining", "generalisation", "kernels")
PUBLISHED = ("cpu", "full")  # sizes whose results are kept
RUN = "python -m benchmarks.experiments"
HEAD = """# Results

Do equivariant networks and pretraining help, as Müller et al. 2021 (arXiv:2102.06942) and Weninger et al. 2022 (BVM)
say? Measured on simulated heads with known truth. `python -m benchmarks.experiments page` writes this page, figures and
summary included, from the JSON lines in `docs/results/`.
"""
LIMITS = """### Limits

- Heads are simulated and simple, the voxels coarse. Nothing here says how well a network does on patients.
- "Better" and "worse": the same sign in every seed, two at least, and p < 0.05 in a paired t-test over the test heads
  (means over seeds), corrected for all comparisons of this page (Benjamini and Hochberg). "Not shown to differ" is
  all the rest. Few seeds say little of how much a new training would differ; ± is their standard deviation.
- The brain is cut out along the true mask for every method. The threshold for the Dice of lesions is chosen on the
  heads that validate.
- Networks take the same number of steps at most (below), not the same time; CPU seconds stand in the tables. They
  compute in bfloat16 where nothing else is said, which takes about ten times as long on a processor without it: seconds
  compare within a table at most.
"""
FIGURE_OF = {
    "lesions": (
        "Lesions against the number of training heads",
        "Upper row: test heads lie as in training. Lower row: the same heads, simulated in random orientations. "
        "Dashed: learned from heads turned at random. Grey: without a network.",
        "lesions",
    ),
    "parameters": ("Lesions against the number of parameters, all heads", "", "lesions"),
    "pretraining": (
        "Pretraining, by the number of labelled heads",
        "Pretrained on unlabelled heads of one protocol, fine-tuned and tested on another. Error: lower is better.",
        "pretraining",
    ),
    "presets": (
        "Pretraining with two labelled heads: every pretext, and real scans",
        "Error: lower is better. Pretraining on real scans needs `--real FOLDER`, too.",
        "pretraining",
    ),
    "generalisation": (
        "Other protocols, SNR, voxels and artifacts than in training",
        "The test heads are the same throughout. Open squares: learned from heads turned at random.",
        "generalisation",
    ),
    "methods": (
        "Old and new networks beside methods without one",
        "A point is a test head, its mean over seeds. Error: lower is better.",
        "generalisation",
    ),
    "curves": (
        "Validation during training",
        "All heads, seed 0; a curve ends where patience did.",
        "lesions",
    ),
}


def write(out: Path) -> None:
    """`out`/<size>/<figure>.png and the page beside `out`."""
    lines = read_lines(out)
    for size, experiments in lines.items():
        for name in FIGURES:
            draw(name, experiments, out / size / f"{name}.png")
    with replacing(out.with_suffix(".md")) as (temporary,):
        temporary.write_text(page(lines), encoding="utf-8")


def read_lines(out: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Size -> experiment -> the lines in `out`/<size>/<experiment>.jsonl."""
    return {size: {name: Results(out / size / f"{name}.jsonl").lines() for name in NAMES} for size in SIZES}


def page(lines: Mapping[str, Mapping[str, Sequence[Line]]]) -> str:
    """The text, of size -> experiment -> lines."""
    parts = [HEAD]
    for name, size in SIZES.items():
        if any(lines[name].values()):
            parts.append(_size(size, lines[name]))
        elif name in PUBLISHED:
            parts.append(f"## Size: {name}\n\nNot run yet: `{RUN} all --size {name}`.\n")
    parts.append(RERUN)
    return "\n".join(parts)


RERUN = f"""## Running it again

`{RUN} lesions|pretraining|generalisation --size cpu|full` runs what has no line yet, so an
interrupted run goes on where it stopped; removing a line runs its arm again. `make experiments SIZE=cpu` runs all. A
GPU is used where there is one. With `--real FOLDER`, a BIDS data set, pretraining takes real scans, too.
`make experiments-small` shows in minutes that every comparison runs, and leaves these results alone.
"""


def _size(size: Size, experiments: Mapping[str, Sequence[Line]]) -> str:
    evidence = Evidence(experiments)
    bullets = "\n".join(f"- {sentence}" for sentence in summary_lines(evidence))
    parts = [f"## Size: {size.name}\n", f"### Summary\n\n{bullets}\n", LIMITS, _scale(size, experiments)]
    for name, (title, caption, experiment) in FIGURE_OF.items():
        if _shown(name, experiments):
            parts.append(f"### {title}\n\n![{title}, size {size.name}](results/{size.name}/{name}.png)\n")
            parts.append(f"{caption} `{RUN} {experiment} --size {size.name}`\n".lstrip())
            if name in TABLES:
                parts += [_folded(what, table) for what, table in TABLES[name](evidence)]
    parts.append(_recipes(size, experiments))
    if experiments["kernels"]:
        parts.append(_kernels(experiments["kernels"]))
    return "\n".join(parts)


def _shown(name: str, experiments: Mapping[str, Sequence[Line]]) -> bool:
    """Whether the lines hold what the figure shows."""

    class Nothing:
        """Stands for pyplot: a figure is asked for only where there is something to draw."""

        def __getattr__(self, name: str) -> Any:
            raise _Wanted

    try:
        return FIGURES[name](Nothing(), experiments) is not None
    except _Wanted:
        return True


class _Wanted(Exception):
    pass


def _folded(title: str, table: str) -> str:
    return f'<details markdown="1"><summary>{title}</summary>\n\n{table}\n</details>\n'


def _scale(size: Size, experiments: Mapping[str, Sequence[Line]]) -> str:
    every = [one for name in NAMES[:-1] for one in experiments[name]]
    hours = sum(one.get("train_seconds", 0.0) for one in every) / 3600
    devices = ", ".join(sorted({one["device"] for one in every}))
    done = {name: sum("recipe" in one for one in choose(experiments[name])) for name in NAMES[1:-1]}
    plan = _planned(size)
    rows = [
        ["heads", f"{size.anatomy}, {size.voxels}³ voxels of {size.spacing_mm:g} mm"],
        ["measurements", f"{size.directions} directions at b = 1000 s/mm²"],
        ["to learn, validate, test", f"{size.learners}, {size.validators}, {size.tests}"],
        ["steps at most", _steps(experiments, rotated=False)],
        ["steps at most, learning from turned heads", _steps(experiments, rotated=True)],
        ["of pretraining, of fine-tuning", f"{size.pretraining.steps}, {size.tuning.steps}"],
        ["validated every", f"{size.schedule.every} steps; ended after {size.schedule.patience} without a new best"],
        ["trainings run, of those planned", ", ".join(f"{name} {done[name]} of {plan[name]}" for name in done)],
        ["training alone", f"{hours:.1f} hours on {devices}"],
    ]  # fmt: skip
    return markdown(["", ""], rows)


def _steps(experiments: Mapping[str, Sequence[Line]], rotated: bool) -> str:
    """Of the trainings from scratch."""
    every = [one for name in ("lesions", "generalisation") for one in choose(experiments[name])]
    own = [one for one in every if "schedule" in one and METHODS[one["method"]].rotated == rotated]
    return " or ".join(str(n) for n in sorted({one["schedule"]["steps"] for one in own})) or "not run"


def _planned(size: Size) -> dict[str, int]:
    """Trainings of every experiment, without those on real scans."""
    known = Recipe(1.0)
    plans: dict[str, Iterable[Arm]] = {
        "lesions": lesions.arms(size, lambda method: known),
        "pretraining": pretraining.arms(size, lambda task, method: known),
        "generalisation": generalisation.arms(size, lambda task, method: known),
    }
    return {name: sum(arm.labels.get("on") != "real" for arm in arms) for name, arms in plans.items()}


def _lesion_tables(evidence: Evidence) -> list[tuple[str, str]]:
    data = choose(evidence.experiments["lesions"], study="data")
    columns = {"average_precision": "AP", "roc_auc": "AUC", "dice": "Dice"}
    rows = []
    for heads in sorted(values_of(data, "heads")):
        for method in values_of(choose(data, heads=heads), "method"):
            own = choose(data, heads=heads, method=method)
            cells = [summary(scores(own, t, c)) for t in ("upright", "turned") for c in columns]
            rows.append([heads, method, *cells, *_effort(own)])
    head = [
        "heads",
        "method",
        *(f"{c} {t}" for t in ("upright", "turned") for c in columns.values()),
        *EFFORT,
    ]
    found = [("Every method", markdown(head, rows))]
    claimed: list[list[Any]] = []
    silent: dict[str, set[int]] = {}
    for (where, *key), comparison in evidence.comparisons.items():
        if where == "lesions":
            heads, test, own, rival = key
            if evidence.failed("lesion", rival, heads):
                silent.setdefault(rival, set()).add(heads)
            else:
                claimed.append([heads, test, own, rival, comparison, comparison.n_seeds])
    table = markdown(["heads", "test", "network", "rival", "difference in AP", "seeds"], claimed)
    for rival, few in silent.items():
        table += f"\n{rival}, {', '.join(map(str, sorted(few)))} heads: {NO_CLAIM}.\n"
    return [*found, ("Differences", table)]


EFFORT = ("parameters", "steps", "seconds")


def _effort(lines: Sequence[Line]) -> list[str]:
    """Parameters, steps taken and seconds of training, means over seeds."""
    if "n_parameters" not in lines[0]:
        return ["–"] * 3
    steps = sum(one["curve"][-1][0] for one in lines) / len(lines)
    seconds = sum(one["train_seconds"] for one in lines) / len(lines)
    return [str(lines[0]["n_parameters"]), f"{steps:.0f}", f"{seconds:.0f}"]


def _parameter_tables(evidence: Evidence) -> list[tuple[str, str]]:
    lines = [o for o in choose(evidence.experiments["lesions"], study="parameters")]
    rows = []
    for method in values_of(lines, "method"):
        for width in sorted(values_of(choose(lines, method=method), "width")):
            own = choose(lines, method=method, width=width)
            cells = [summary(scores(own, t, "average_precision")) for t in ("upright", "turned")]
            rows.append([method, *cells, *_effort(own)])
    return [("Other widths", markdown(["method", "AP upright", "AP turned", *EFFORT], rows))]


def _pretraining_tables(evidence: Evidence) -> list[tuple[str, str]]:
    data, rows = choose(evidence.experiments["pretraining"]), []
    for task in values_of(data, "task"):
        for method in values_of(choose(data, task=task), "method"):
            for labelled in sorted(values_of(choose(data, task=task, method=method), "labelled")):
                own = choose(data, task=task, method=method, labelled=labelled)
                for name in dict.fromkeys(map(pretext_name, own)):
                    lines = [o for o in own if pretext_name(o) == name]
                    key = ("pretraining", task, method, labelled, name)
                    against = [
                        evidence.comparisons.get((*key, rival), "–") for rival in ("none", "autoencoder")
                    ]
                    score = summary(scores(lines, "test", KEY_COLUMN[task]))
                    rows.append([task, method, labelled, name or "–", score, *against])
    head = ["task", "method", "labelled", "pretext", "score", "against none", "against autoencoder"]
    return [("Every score; positive differences are gains", markdown(head, rows))]


def _method_tables(evidence: Evidence) -> list[tuple[str, str]]:
    data, rows, pairs = choose(evidence.experiments["generalisation"]), [], []
    for task in values_of(data, "task"):
        for method in values_of(choose(data, task=task), "method"):
            own = choose(data, task=task, method=method)
            rows.append([task, method, summary(scores(own, "as trained", KEY_COLUMN[task])), *_effort(own)])
    for (where, *key), comparison in evidence.comparisons.items():
        if where == "generalisation":
            task, own_name, rival = key
            if evidence.failed(task, rival):
                pairs.append([task, own_name, rival, NO_CLAIM])
            else:
                pairs.append([task, own_name, rival, comparison])
    return [
        ("Every method", markdown(["task", "method", "score", *EFFORT], rows)),
        ("Differences; positive is better", markdown(["task", "network", "rival", "difference"], pairs)),
    ]


def _protocol_tables(evidence: Evidence) -> list[tuple[str, str]]:
    data = choose(evidence.experiments["generalisation"], task="tissue")
    methods = values_of(data, "method")
    rows = []
    for test in data[0]["tests"]:
        cells = [summary(scores(choose(data, method=method), test, "dice")) for method in methods]
        rows.append([test, *cells])
    return [("Tissue Dice on every protocol", markdown(["protocol", *methods], rows))]


TABLES = {
    "lesions": _lesion_tables,
    "parameters": _parameter_tables,
    "pretraining": _pretraining_tables,
    "methods": _method_tables,
    "generalisation": _protocol_tables,
}


def _validation(trial: Line) -> str:
    return f"{abs(trial['validation']):.3f}" if "validation" in trial else "not finite"


def _recipes(size: Size, experiments: Mapping[str, Sequence[Line]]) -> str:
    """The trials of every search, and what they led to."""
    lines = experiments["recipes"]
    if not lines:
        return ""
    rows = []
    for task in values_of(lines, "task"):
        for method in values_of(lines, "method"):
            own = [o for o in lines if o["labels"]["task"] == task and o["labels"]["method"] == method]
            if any("validation" in o for o in own):
                best = max((o for o in own if "validation" in o), key=lambda o: o["validation"])
                tried = "; ".join(f"{o['labels']['trial']}: {_validation(o)}" for o in own)
                rows.append([task, method, best["labels"]["trial"], f"{abs(best['validation']):.3f}", tried])
    table = markdown(
        ["task", "network", "chosen", "validation", "tried (learning rate, class weight, norm)"], rows
    )
    more = ", then class weights, then norms" if size.thorough else ""
    return (
        "### Recipes\n\nOne search a task and network, by the same rules: whole heads, channels standardised by the "
        f"training set, one-cycle Adam; learning rates, beyond the range while its end is best{more}. The heads that "
        "validate choose, and every experiment takes the recipe over, also where a network learns from turned heads or "
        "has another width.\n\n" + _folded("Trials", table)
    )


def _kernels(lines: Sequence[Line]) -> str:
    """The four kernels of 2021, late and gradual; from before the recipe search."""
    rows = []
    for method in values_of(lines, "method"):
        for reduction in values_of(lines, "reduction"):
            own = choose(lines, method=method, reduction=reduction)
            if own:
                cells = [summary(scores(own, test, "average_precision")) for test in ("upright", "turned")]
                rows.append([method, reduction, own[0]["n_parameters"], *cells])
    table = markdown(["kernel", "reduction", "parameters", "AP upright", "AP turned"], rows)
    steps = max(line["steps"] for line in lines)
    return (
        "### Kernels of 2021\n\nTwo pq layers with each of the paper's four kernels and two reductions of q-space, on "
        f"lesions. Older than the recipes above: heads of 4 mm, {steps} steps on crops of 16 voxels, one learning "
        "rate; compare them with each other alone.\n\n" + _folded("Kernels", table)
    )
