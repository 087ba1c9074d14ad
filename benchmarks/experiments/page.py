"""Write `docs/results.md` and its figures from the JSON lines: no number of a table or claim is typed by hand.

What the numbers mean is written by hand in `docs/results/<size>/analysis.txt`, which the page takes over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments.claims import claims
from benchmarks.experiments.figures import draw
from benchmarks.experiments.results import Results
from benchmarks.experiments.run import VALIDATIONS
from benchmarks.experiments.sections import SECTIONS
from benchmarks.experiments.sizes import SIZES, Size
from benchmarks.experiments.tables import choose, markdown
from dmri_monai.io.writing import replacing

__all__ = ["page", "read_lines", "write"]

TITLES = {
    "lesions": "Lesion segmentation",
    "pretraining": "Pretraining",
    "generalisation": "Other protocols",
    "classical": "Against classical methods",
}
PUBLISHED = ("cpu", "full")  # sizes whose results are kept
QUESTIONS = {
    "lesions": "How well do networks find lesions, by the number of training subjects and by how the test heads lie? "
    "Heads of `upright` lie as in training, those of `turned` in random orientations; they are the same heads. "
    "`plain, rotated` learns from randomly rotated heads.",
    "pretraining": "Does pretraining on unlabelled scans of one protocol help on few labelled subjects of another? "
    "Dice for tissue, macro-F1 for crossings, median angular error in degrees (lower is better) for orientation.",
    "generalisation": "What becomes of tissue Dice when the test scans differ from the training in one point? "
    "`change`: against the protocol of the training, paired, mean ± SD over seeds. Networks of one shell (all "
    "but pq) read that shell alone from scans with three.",
    "classical": "How do networks compare with DIPY's constrained spherical deconvolution, the principal direction of "
    "the tensor, and median_otsu with thresholds of FA and MD, on the same scans and by the same metrics?",
}
HEAD = """# Results

The two papers' comparisons on simulated heads with known truth: Müller et al. 2021 (arXiv:2102.06942) and Weninger
et al. 2022 (BVM). This page is written by `python -m benchmarks.experiments page` from the JSON lines in
`docs/results/`; every line holds the settings of its network, and the size below what it was trained and tested on.

How to read the tables:

- Scores are mean ± standard deviation over seeds of the mean over test subjects. A seed chooses training and validation
  subjects, initial weights, crops and flips, and is the same for all methods, so that differences are paired.
- The spread is the larger of the two arms' standard deviations. "Better" and "worse" mean a difference beyond it.
- p (seeds) and p (subjects) are of paired t-tests over the seeds' means and over the test subjects' means, without
  correction for the number of comparisons. {seeds}
- Of pretraining, "holds": better on two of the three tasks beyond the spread; "holds in the mean only": on one beyond
  it, on two in the mean, and on none worse beyond it; "not decided": on two in the mean, otherwise.
- Networks are validated every so many epochs, {validations} times or more, and the best of these checkpoints is tested:
  steps after the last validation, up to a fifth, go unused. The subjects that validate are labelled too and come on top
  of those in the tables; they are the same for every arm of a seed.
- In the lesion experiment the plain and the equivariant network have about the same number of parameters (the
  published shape of the pq network has far fewer) and all methods take the same number of steps, up to a whole epoch;
  a study of equal training time stands beside it. Half of the crops are centred on lesions. The learning rate of each
  of its methods is chosen by validation of one trial a value, on all subjects, and kept in the other studies.
  `voxelwise` is a logistic regression on 12 rotation invariants of a voxel and its surroundings: what a network must
  beat to have learned anything. Rotated training heads are interpolated, turned test heads are simulated turned. Dice
  is that of the threshold 0.5 after a loss that balances lesions and the rest, so it is low where AP is not.
- In the other experiments all have the same learning rate; parameters and seconds of training stand below the tables.
  `plain, whole scans` is the plain network trained without crops for as many steps: every step sees more voxels and
  takes longer, so it has the larger budget.
- Networks that are pretrained take these steps on top of those of the fine-tuning, which `none` takes too.
"""
RERUN = """## Running it again

```console
{commands}
```

An arm whose line is in `docs/results/` is skipped, so an interrupted run goes on where it stopped; removing a line
runs its arm again. A GPU is used where there is one; data and checkpoints go to `runs/experiments/`. `make experiments`
runs all of the full size, `make experiments SIZE=cpu` all of the size `cpu`. `make experiments-small` runs one seed of
everything, hardly trained, in minutes: it shows that every comparison runs, and leaves these results alone.
"""


def write(out: Path) -> None:
    """`out`/<size>/<experiment>.png and the page beside `out`."""
    lines = read_lines(out)
    for size, experiments in lines.items():
        for name, found in experiments.items():
            if found:
                draw(name, found, out / size / f"{name}.png")
    with replacing(out.with_suffix(".md")) as (temporary,):
        temporary.write_text(page(lines, out), encoding="utf-8")


def read_lines(out: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Size -> experiment -> the lines in `out`/<size>/<experiment>.jsonl."""
    return {size: {name: Results(out / size / f"{name}.jsonl").lines() for name in TITLES} for size in SIZES}


def page(lines: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]], out: Path) -> str:
    """The text, of size -> experiment -> lines."""
    few = min((size.seeds for name, size in SIZES.items() if any(lines[name].values())), default=5)
    seeds = f"With {few} seeds the first has little power." if few < 5 else ""
    parts = [HEAD.format(seeds=seeds, validations=VALIDATIONS)]
    for name, size in SIZES.items():
        if name in PUBLISHED or any(lines[name].values()):
            parts.append(_size(size, lines[name], out))
    commands = "\n".join(
        f"python -m benchmarks.experiments {name} --size {size}" for size in PUBLISHED for name in TITLES
    )
    parts.append(RERUN.format(commands=commands))
    return "\n".join(parts)


def _size(size: Size, experiments: Mapping[str, Sequence[Mapping[str, Any]]], out: Path) -> str:
    parts = [f"## Size: {size.name}\n", _description(size)]
    missing = [TITLES[name].lower() for name in TITLES if not choose(experiments[name])]
    if missing:
        parts.append(f"**Not run at this size: {', '.join(missing)}.**\n")
    if len(missing) < len(TITLES):
        parts.append(claims(experiments))
    if (out / size.name / "analysis.txt").is_file():
        parts.append((out / size.name / "analysis.txt").read_text(encoding="utf-8"))
    for name, title in TITLES.items():
        if choose(experiments[name]):
            parts.append(_experiment(size, name, title, experiments[name], out))
    return "\n".join(parts)


def _description(size: Size) -> str:
    rows: list[list[object]] = [
        ["anatomy", size.anatomy],
        ["grid", f"{size.voxels}³ voxels of {size.spacing_mm:g} mm"],
        ["training cohort", f"{size.subjects} subjects, {size.subjects - size.learners} of them to validate"],
        ["test cohort", f"{size.test_subjects} other subjects"],
        ["seeds", size.seeds],
        ["steps", f"{size.steps}; of pretraining {size.pretrain_steps}, of fine-tuning {size.tune_steps}"],
        ["learning rates tried for lesions", ", ".join(f"{rate:g}" for rate in size.rates)],
        ["learning rate of the other experiments", f"{size.rate:g}"],
    ]
    return markdown(["", ""], rows) + SCALE[size.name]


SCALE = {
    "small": "\nShows that every comparison runs; its numbers say nothing about the methods.\n",
    "cpu": "\nThe largest size that two processor cores run in hours: coarse voxels, narrow networks, few steps.\n"
    "Networks are far from converged: these numbers compare what methods learn from little data in little time.\n",
    "full": "\nFor one machine with a GPU.\n",
}


def _experiment(size: Size, name: str, title: str, lines: Sequence[Mapping[str, Any]], out: Path) -> str:
    parts = [f"### {title}\n", QUESTIONS[name] + "\n"]
    if (out / size.name / f"{name}.png").is_file():
        parts.append(f"![{title}, size {size.name}](results/{size.name}/{name}.png)\n")
    parts.append(SECTIONS[name](lines))
    tested = choose(lines)
    if name != "lesions":
        parts.append(_networks(tested))
    steps = sorted({line["steps"] for line in tested if "steps" in line})
    crops = sorted({line["settings"]["crop_size"][0] for line in tested if "settings" in line})
    if steps and crops:
        several, cubes = (", ".join(map(str, numbers)) for numbers in (steps, crops))
        parts.append(f"Steps of a training: {several}, on crops of {cubes} voxels per axis.\n")
    rates = {
        line["labels"]["method"]: line["learning_rate"]
        for line in tested
        if line["labels"].get("study") == "data" and "learning_rate" in line
    }
    if rates:
        chosen = ", ".join(f"{k} {v:g}" for k, v in rates.items())
        ends = {min(size.rates), max(size.rates)} if len(size.rates) > 1 else set()
        at_end = ", ".join(k for k, v in rates.items() if v in ends)
        edge = (
            f" The ends of the range tried were chosen for {at_end}: others may be better." if at_end else ""
        )
        parts.append(f"Learning rates: {chosen}.{edge}\n")
    minutes = sum(line["wall_seconds"] for line in lines) / 60
    devices = ", ".join(sorted({line["device"] for line in lines}))
    parts.append(
        f"{len(tested)} tested arms and {sum('trial' in line['labels'] for line in lines)} trials of learning rates, "
        f"{minutes:.0f} minutes on {devices}.\n"
    )
    return "\n".join(parts)


def _networks(tested: Sequence[Mapping[str, Any]]) -> str:
    """Parameters of every network, over its tasks, and how long it was trained."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in tested:
        if "steps" in line:
            labels = line["labels"]
            groups.setdefault(labels.get("architecture") or labels["method"], []).append(line)
    texts = []
    for name, own in groups.items():
        low, high = (f(line["n_parameters"] for line in own) for f in (min, max))
        seconds = sum(line["train_seconds"] for line in own) / len(own)
        parameters = str(low) if low == high else f"{low} to {high}"
        texts.append(f"{name} {parameters} parameters, {seconds:.0f} s of training")
    return "; ".join(texts) + " on average.\n" if texts else ""
