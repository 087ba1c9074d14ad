"""The papers' claims as tests of the lines: what holds, what does not, what cannot be said yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from benchmarks.experiments.sizes import WHOLE
from benchmarks.experiments.tables import (
    KEY_COLUMN,
    choose,
    markdown,
    paired,
    scores,
    spread,
    summary,
    values_of,
)
from benchmarks.experiments.voxelwise import VOXELWISE

__all__ = ["claims", "lesion_claim", "pretraining_claim", "rotation_claim", "time_claim"]

Line = Mapping[str, Any]
Verdict = tuple[str, str]  # "holds", "does not hold" or "open", and why


def claims(experiments: Mapping[str, Sequence[Line]]) -> str:
    """A table of one row a claim: what it says, whether it holds, and the figures."""
    rows = []
    for method in ("equivariant", "pq"):
        for test, statement in (
            (
                "turned",
                "at 10 to 50 % of the subjects, finds lesions on turned heads better than `plain` beyond the spread",
            ),
            ("upright", "at 10 to 50 %, is not worse than `plain` in the training orientation"),
        ):
            found = lesion_claim(experiments["lesions"], method, test)
            rows.append((f"The {method} network, {statement}", found))
        found = lesion_claim(experiments["lesions"], method, "turned", VOXELWISE)
        statement = f"finds lesions on turned heads better than the {VOXELWISE} regression beyond the spread"
        rows.append((f"The {method} network, at 10 to 50 %, {statement}", found))
    for method in ("equivariant", "pq"):
        for rival in ("plain", "plain, wide", WHOLE, "plain, rotated"):
            text = f"In the same time of training, on all subjects, {method} beats `{rival}` on turned heads"
            rows.append((text, time_claim(experiments["lesions"], method, rival)))
    tuned = experiments["pretraining"]
    numbers, presets = sorted(values_of(tuned, "labelled")) or [2], values_of(tuned, "preset") or ["all"]
    for labelled, rival, network, preset in product(
        numbers, ("none", "autoencoder"), ("plain", WHOLE, "equivariant"), presets
    ):
        if tuned and not choose(tuned, architecture=network, labelled=labelled, preset=preset):
            continue
        text = f"With {labelled} labelled subjects pretraining on artifacts beats {rival} on two of the three tasks"
        found = pretraining_claim(tuned, network, rival, labelled, preset)
        rows.append((f"{text} ({network}; preset {preset})", found))
    for method in ("equivariant", "pq"):
        for rival in ("plain", WHOLE):
            text = f"Turned heads cost the {method} network at most a third of the tissue Dice they cost `{rival}`"
            rows.append((text, rotation_claim(experiments["generalisation"], method, rival)))
    table = markdown(
        ["claim", "", "figures"], [[statement, f"**{holds}**", why] for statement, (holds, why) in rows]
    )
    return f"The claims at this size:\n\n{table}"


def lesion_claim(lines: Sequence[Line], method: str, test: str, rival: str = "plain") -> Verdict:
    """AP of `method` against `rival` at 10-50 % of the subjects, judged on the heads `test`.

    What holds against a rival that is itself below the regression is said to hold against a weak rival: it shows
    little; less where `method` is below the regression, too.
    """
    data = choose(lines, study="data")
    failed: list[str] = []
    passed: list[str] = []
    missing: list[str] = []
    below: dict[str, list[str]] = {method: [], rival: []}
    for share in sorted(s for s in values_of(data, "share") if 0.1 <= s <= 0.5):
        own, other, yardstick = (choose(data, method=m, share=share) for m in (method, rival, VOXELWISE))
        percent = f"{100 * share:g} %"
        if not _comparable(own, other):
            missing.append(percent)
            continue
        a, b = (scores(arm, test, "average_precision") for arm in (own, other))
        gain, limit = paired(a, b).mean, spread(a, b)
        ok = gain > limit if test == "turned" else gain >= -limit
        (passed if ok else failed).append(f"{gain:+.3f} at {percent}, spread {limit:.3f}")
        for name, arm in ((method, own), (rival, other)):
            below[name] += [f"{text} at {percent}" for text in _below(arm, yardstick, test)]
    if not passed and not failed:
        return "open", "not run"
    holds, why = "does not hold" if failed else "holds", "; ".join(passed + failed)
    if missing and holds != "does not hold":
        return "open", "; ".join([*passed, f"not run at {', '.join(missing)}"]) if passed else "not run"
    return _qualified(holds, why, below)


def _below(arm: Sequence[Line], yardstick: Sequence[Line], test: str) -> list[str]:
    """The mean AP of `arm` and of the regression, where `arm` is below it."""
    if not yardstick:
        return []
    found, needed = (summary(scores(lines, test, "average_precision")).mean for lines in (arm, yardstick))
    return [f"{found:.3f} against {needed:.3f}"] if found < needed else []


def _qualified(holds: str, why: str, below: Mapping[str, Sequence[str]]) -> Verdict:
    """The verdict, and which of the two methods (own, rival) are below the regression, and by what."""
    own, rival = below.values()
    if holds != "holds" or not rival:
        return holds, why
    texts = [f"`{name}` is below the regression, AP {', '.join(t)}" for name, t in below.items() if t]
    return f"holds {'below the regression' if own else 'against a weak rival'}", "; ".join([why, *texts])


def time_claim(lines: Sequence[Line], method: str, rival: str) -> Verdict:
    """AP of `method` above that of `rival` by more than the spread, on turned heads, after the same training time.

    A rival below the regression is named weak, as in :func:`lesion_claim`.
    """
    data = choose(lines, study="time")
    own, other = choose(data, method=method), choose(data, method=rival)
    if not _comparable(own, other):
        return "open", "not run"
    a, b = (scores(arm, "turned", "average_precision") for arm in (own, other))
    gain, limit = paired(a, b).mean, spread(a, b)
    why = f"{gain:+.3f}, spread {limit:.3f}"
    if gain <= limit:
        return "does not hold", why
    yardstick = choose(lines, study="data", method=VOXELWISE, share=1.0)
    below = {method: _below(own, yardstick, "turned"), rival: _below(other, yardstick, "turned")}
    return _qualified("holds", why, below)


def _comparable(own: Sequence[Line], other: Sequence[Line]) -> bool:
    """Whether both arms have the same seeds, and several, since one has no spread."""
    return len(own) > 1 and [line["seed"] for line in own] == [line["seed"] for line in other]


def pretraining_claim(
    lines: Sequence[Line], network: str, rival: str, labelled: int, preset: str = "all"
) -> Verdict:
    """Whether "artifacts" is better than `rival` on two tasks.

    "holds": on two beyond the spread.  "holds in the mean only": on one beyond it and on two in the mean, and on none
    worse beyond it.  "not decided": on two in the mean otherwise, which chance alone gives every second time.
    """
    data = choose(lines, architecture=network, labelled=labelled)
    gains = {task: _gain(choose(data, task=task), task, rival, preset) for task in values_of(data, "task")}
    known = {task: gain for task, gain in gains.items() if gain is not None}
    why = "; ".join(
        f"{task} {gain:+.3f} {'beyond' if abs(gain) > limit else 'within'} the spread"
        for task, (gain, limit) in known.items()
    )
    above = sum(gain > 0 for gain, _ in known.values())
    beyond = sum(gain > limit for gain, limit in known.values())
    if not known:
        return "open", "not run"
    if len(known) < 3 and (beyond < 2 <= beyond + 3 - len(known)):
        return "open", f"{why}; tasks are missing"
    if beyond >= 2:
        return "holds", why
    if above < 2:
        return "does not hold", why
    worse = any(gain < -limit for gain, limit in known.values())
    return "holds in the mean only" if beyond and not worse else "not decided", why


def rotation_claim(lines: Sequence[Line], method: str, rival: str) -> Verdict:
    """What turned heads cost `method` and `rival` in mean Dice.

    Open where they cost the rival nothing, and where the seeds do not tell the cost from a third of the rival's.
    """
    arms = [choose(lines, method=name) for name in (method, rival)]
    if not _comparable(*arms):
        return "open", "not run"
    own, other = (
        np.nanmean(scores(arm, "turned heads", "dice") - scores(arm, "as trained", "dice"), axis=1)
        for arm in arms
    )
    margin = own - other / 3
    found, sd = float(margin.mean()), float(margin.std(ddof=1))
    why = f"{own.mean():+.3f}, `{rival}` {other.mean():+.3f}; {found:+.3f} ± {sd:.3f} from a third"
    if other.mean() >= 0 or abs(found) <= sd:
        return "open", why
    return "holds" if found > 0 else "does not hold", why


def _gain(lines: Sequence[Line], task: str, rival: str, preset: str) -> tuple[float, float] | None:
    """How much better artifacts are than `rival`, in units of the score, and the spread; None without both arms."""
    own = choose(lines, pretext="artifacts", preset=preset)
    other = choose(lines, pretext=rival)
    if not _comparable(own, other):
        return None
    a, b = (scores(arm, "test", KEY_COLUMN[task]) for arm in (own, other))
    gain = paired(a, b).mean
    return (-gain if task == "orientation" else gain), spread(a, b)
