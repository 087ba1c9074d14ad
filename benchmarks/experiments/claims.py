"""The papers' claims as tests of the lines: what holds, what does not, what cannot be said yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.experiments.tables import KEY_COLUMN, choose, paired, scores, spread, summary, values_of

__all__ = ["claims", "lesion_claim", "pretraining_claim", "rotation_claim", "time_claim"]

Line = Mapping[str, Any]
LEARNED_AUC = 0.65  # below it a rival is no better than chance, and beating it shows nothing
Verdict = tuple[str, str]  # "holds", "does not hold" or "open", and why


def claims(experiments: Mapping[str, Sequence[Line]]) -> str:
    """One sentence a claim."""
    rows = []
    for rival in ("plain", "plain, whole scans"):
        for method in ("equivariant", "pq"):
            for test, statement in (
                ("turned", f"finds lesions on turned heads better than `{rival}` by more than the spread"),
                ("upright", f"is not worse than `{rival}` in the training orientation"),
            ):
                found = lesion_claim(experiments["lesions"], method, test, rival)
                rows.append((f"The {method} network {statement}", found))
    for method in ("equivariant", "pq"):
        for rival in ("plain", "plain, wide", "plain, whole scans", "plain, rotated"):
            text = f"In the same time of training, on all subjects, {method} beats `{rival}` on turned heads"
            rows.append((text, time_claim(experiments["lesions"], method, rival)))
    for rival in ("none", "autoencoder"):
        for network in ("plain", "equivariant"):
            found = pretraining_claim(experiments["pretraining"], network, rival)
            text = f"Pretraining on artifacts is better than {rival} on two of the three tasks ({network} network)"
            rows.append((text, found))
    for method in ("equivariant", "pq"):
        text = f"Turned heads cost the {method} network at most a third of the tissue Dice they cost the plain one"
        rows.append((text, rotation_claim(experiments["generalisation"], method)))
    text = "\n".join(f"- {statement}: **{holds}** ({why})." for statement, (holds, why) in rows)
    return f"The claims at this size, judged by the rule above:\n\n{text}\n"


def lesion_claim(lines: Sequence[Line], method: str, test: str, rival: str = "plain") -> Verdict:
    """AP of `method` against `rival`, a plain network, at 10-50 % of the subjects, judged on the heads `test`.

    Open where the rival has not learned the task, by how it ranks voxels of heads that lie as in training.
    """
    data = choose(lines, study="data")
    failed: list[str] = []
    passed: list[str] = []
    for share in sorted(s for s in values_of(data, "share") if 0.1 <= s <= 0.5):
        own, other = (choose(data, method=m, share=share) for m in (method, rival))
        if not own or len(own) != len(other):
            continue
        learned = summary(scores(other, "upright", "roc_auc")).mean
        if learned < LEARNED_AUC:
            return "open", f"`{rival}` has hardly learned, ROC AUC {learned:.2f} at {100 * share:g} %"
        a, b = (scores(arm, test, "average_precision") for arm in (own, other))
        gain, limit = paired(a, b).mean, spread(a, b)
        ok = gain > limit if test == "turned" else gain >= -limit
        (passed if ok else failed).append(f"{gain:+.3f} at {100 * share:g} %, spread {limit:.3f}")
    return _judged(passed, failed, all_needed=True)


def time_claim(lines: Sequence[Line], method: str, rival: str) -> Verdict:
    """AP of `method` above that of `rival` by more than the spread, on turned heads, after the same training time."""
    data = choose(lines, study="time")
    own, other = choose(data, method=method), choose(data, method=rival)
    if not own or len(own) != len(other):
        return "open", "not run"
    a, b = (scores(arm, "turned", "average_precision") for arm in (own, other))
    gain, limit = paired(a, b).mean, spread(a, b)
    return "holds" if gain > limit else "does not hold", f"{gain:+.3f}, spread {limit:.3f}"


def pretraining_claim(lines: Sequence[Line], network: str, rival: str) -> Verdict:
    """ "artifacts" (preset all) above `rival` in the mean, at no more than two labelled subjects, on two tasks."""
    data = choose(lines, architecture=network)
    failed: list[str] = []
    passed: list[str] = []
    for task in values_of(data, "task"):
        few = [n for n in values_of(choose(data, task=task), "labelled") if n <= 2]
        gains = [_gain(choose(data, task=task, labelled=n), task, rival) for n in few]
        if not gains or None in gains:
            continue
        text = f"{task} " + ", ".join(f"{gain:+.3f}" for gain in gains if gain is not None)
        (passed if all(gain is not None and gain > 0 for gain in gains) else failed).append(text)
    return _judged(passed, failed, all_needed=False)


def rotation_claim(lines: Sequence[Line], method: str) -> Verdict:
    """Mean change of Dice from upright to turned heads, in size, of `method` and "plain"."""
    arms = [choose(lines, method=name) for name in (method, "plain")]
    if not all(arms):
        return "open", "not run"
    own, other = (
        paired(scores(arm, "turned heads", "dice"), scores(arm, "as trained", "dice")).mean for arm in arms
    )
    holds = "holds" if abs(own) <= abs(other) / 3 else "does not hold"
    return holds, f"{own:+.3f}, plain {other:+.3f}"


def _gain(lines: Sequence[Line], task: str, rival: str) -> float | None:
    """How much better artifacts are than `rival`, in units of the score; None where an arm is missing."""
    own = choose(lines, pretext="artifacts", preset="all")
    other = choose(lines, pretext=rival)
    if not own or len(own) != len(other):
        return None
    found = paired(*(scores(arm, "test", KEY_COLUMN[task]) for arm in (own, other)))
    return -found.mean if task == "orientation" else found.mean


def _judged(passed: list[str], failed: list[str], all_needed: bool) -> Verdict:
    if not passed and not failed:
        return "open", "not run"
    if all_needed:
        holds = not failed
    elif len(passed) < 2 and len(passed) + len(failed) < 3:
        return "open", "; ".join(passed + failed) + "; tasks are missing"
    else:
        holds = len(passed) >= 2
    return "holds" if holds else "does not hold", "; ".join(passed + failed)
