"""Methods without a network: the trivial ones that a network must beat to have learned, and the classical rivals.

Trivial: the commonest answer ("prevalence"), k-means of three maps, and a regression of one voxel and its
surroundings on rotation invariants.  Classical: a forest on the same invariants, thresholds of FA and MD, constrained
spherical deconvolution and the tensor of DIPY.  What they choose, they choose on the heads that networks learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.experiments.arms import Arm, digest
from benchmarks.experiments.cases import Case
from benchmarks.experiments.objectives import OBJECTIVES, axis_scores
from benchmarks.experiments.runner import Runner, columns_of, learners_of
from dmri_monai.phantom import Subject
from dmri_monai.qspace.invariants import power_spectrum
from dmri_monai.qspace.tensor import fit_tensor, tensor_metrics
from dmri_monai.reference import PeakRule, fibre_labels

__all__ = ["CLASSICAL", "TRIVIAL", "invariants", "without_network"]

TRIVIAL = ("prevalence", "k-means", "regression")
CLASSICAL = ("forest", "thresholds", "deconvolution", "tensor")
WINDOWS = (3, 5)  # voxels
CLUSTERS = 8
MOST_VOXELS = 40_000  # that regression and forest learn from
RELATIVE, ABSOLUTE = (0.1, 0.35), (0.2, 0.3, 0.4)  # least heights of peaks
FA, MD = (0.15, 0.2, 0.25, 0.3, 0.35), (1.2e-3, 1.5e-3, 1.8e-3, 2.1e-3, 2.4e-3)  # limits, MD in mm²/s
Rows = list[dict[str, float]]


def without_network(runner: Runner, arm: Arm, name: str) -> dict[str, Any] | None:
    """The line of method `name` on the heads of `arm`, from the file or newly made; None where it has no answer."""
    kind = FEATURES if name in FEATURES else CHOSEN
    if name != "prevalence" and arm.task not in kind.get(name, {}):
        return None
    labels = {**arm.labels, "method": name}
    content = [name, arm.experiment, labels, arm.seed, arm.task, arm.learners, arm.validators]
    key = digest([content, asdict(arm.cohort), [asdict(test) for test in arm.tests]])

    def make() -> dict[str, Any]:
        made = (
            _learned(runner, arm, name)
            if name in FEATURES or name == "prevalence"
            else _chosen(runner, arm, name)
        )
        return {
            "experiment": arm.experiment, "labels": labels, "seed": arm.seed, "method": name, "task": arm.task,
            "learners": arm.learners, **made,
        }  # fmt: skip

    return runner.made_once(key, make)


def invariants(case: Case) -> Tensor:
    """(12, V) of the brain's voxels: b0 and the norms of the harmonics of degree 0, 2 and 4, then their means over 3³
    and 5³ voxels.  The case holds unscaled harmonic channels.
    """
    power = power_spectrum(case.image[None], case.irreps)
    norms = torch.cat([power[:, :2], power[:, 2:].sqrt()], dim=1)
    means = [F.avg_pool3d(norms, n, stride=1, padding=n // 2) for n in WINDOWS]
    return torch.cat([norms, *means], dim=1)[0][:, case.mask]


def _learned(runner: Runner, arm: Arm, name: str) -> dict[str, Any]:
    """Scores of a method that learns from invariants and labels of single voxels."""
    numbers, validators = learners_of(arm)
    pairs = _voxels(runner.cases(arm.cohort, "harmonics", arm.task, numbers))
    x, y = (torch.cat(parts, dim=-1) for parts in zip(*pairs, strict=True))
    if y.shape[-1] > MOST_VOXELS:
        kept = torch.from_numpy(np.random.RandomState(arm.seed).permutation(y.shape[-1])[:MOST_VOXELS])
        x, y = x[:, kept], y[:, kept]
    classes = len(OBJECTIVES[arm.task].weights) and (2 if arm.task == "lesion" else 4)
    answer = (
        _prevalence(y)
        if name == "prevalence"
        else FEATURES[name][arm.task](x.T.numpy(), y[0].numpy(), classes)
    )
    offset = OBJECTIVES[arm.task].offset
    shift = 0.0
    if arm.task == "lesion":
        checked = _voxels(runner.cases(arm.cohort, "harmonics", arm.task, validators))
        shift = offset([answer(v).logit(1e-6) for v, _ in checked], [label for _, label in checked])
    tests = {}
    for cohort in arm.tests:
        rows: Rows = []
        for v, label in _voxels(runner.cases(cohort, "harmonics", arm.task, range(cohort.subjects))):
            found = answer(v)
            if arm.task == "lesion":
                found = (found.logit(1e-6) + shift).sigmoid()
            scores = axis_scores if arm.task == "orientation" else OBJECTIVES[arm.task].scores
            rows.append(scores(found, label))
        tests[cohort.name] = columns_of(rows)
    return {"tests": tests}


def _voxels(cases: Sequence[Case]) -> list[tuple[Tensor, Tensor]]:
    """(12, V) invariants and (k, V) labels of every case, on the CPU, where scikit-learn works."""
    return [(invariants(case).cpu(), case.label[:, case.mask].cpu()) for case in cases]


Answer = Callable[[Tensor], Tensor]  # (12, V) -> (1, V) probability of a lesion, or class


def _prevalence(y: Tensor) -> Answer:
    """The commonest class, for lesions their share everywhere, for axes the mean axis."""
    if len(y) == 3:
        axes = F.normalize(y[:, y.isfinite().all(0)], dim=0)
        mean = torch.linalg.eigh(axes @ axes.T).eigenvectors[:, -1]
        return lambda v: mean[:, None].expand(3, v.shape[1])
    share = float((y > 0).float().mean())
    value = share if y.max() <= 1 else float(y.flatten().mode().values)
    return lambda v: torch.full((1, v.shape[1]), value)


def _regression(x: np.ndarray, y: np.ndarray, classes: int) -> Answer:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    made = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=300))
    return _fitted(made, x, y, classes)


def _forest(x: np.ndarray, y: np.ndarray, classes: int) -> Answer:
    from sklearn.ensemble import RandomForestClassifier

    made = RandomForestClassifier(40, min_samples_leaf=5, class_weight="balanced_subsample", random_state=0)
    return _fitted(made, x, y, classes)


def _fitted(model: Any, x: np.ndarray, y: np.ndarray, classes: int) -> Answer:
    if len(np.unique(y)) < 2:  # few heads can be without lesions
        return lambda v: torch.full((1, v.shape[1]), float(y.flat[0]) if classes > 2 else 0.5)
    model.fit(x, y)

    def answer(v: Tensor) -> Tensor:
        values = v.T.numpy()
        found = model.predict_proba(values)[:, 1] if classes == 2 else model.predict(values)
        return torch.from_numpy(np.asarray(found, dtype=np.float32))[None]

    return answer


def _kmeans(x: np.ndarray, y: np.ndarray, classes: int) -> Answer:
    """Clusters of b0 and the norms of degrees 0 and 2 of one voxel; each answers its commonest class or share."""
    from sklearn.cluster import KMeans

    own = x[:, :3]
    mean, sd = own.mean(0), own.std(0) + 1e-9
    model = KMeans(CLUSTERS, n_init=3, random_state=0).fit((own - mean) / sd)
    groups = [y[model.labels_ == k] for k in range(CLUSTERS)]
    if classes == 2:
        values = np.array([group.mean() for group in groups])
    else:
        values = np.array([np.bincount(group.astype(int), minlength=classes).argmax() for group in groups])

    def answer(v: Tensor) -> Tensor:
        found = values[model.predict((v[:3].T.numpy() - mean) / sd)]
        return torch.from_numpy(found.astype(np.float32))[None]

    return answer


FEATURES: Mapping[str, Mapping[str, Callable[[np.ndarray, np.ndarray, int], Answer]]] = {
    "k-means": {"tissue": _kmeans, "lesion": _kmeans, "crossings": _kmeans},
    "regression": {"tissue": _regression, "lesion": _regression, "crossings": _regression},
    "forest": {"tissue": _forest, "lesion": _forest, "crossings": _forest},
}


def _chosen(runner: Runner, arm: Arm, name: str) -> dict[str, Any]:
    """Scores of a method with a few parameters, chosen on a fifth of the learners, five at most."""
    method, grid = CHOSEN[name][arm.task]
    numbers, _ = learners_of(arm)
    few = [runner.subject(arm.cohort, n) for n in numbers[: min(5, max(1, len(numbers) // 5))]]
    objective = OBJECTIVES[arm.task]

    def rows(subjects: Sequence[Subject], choice: Any) -> Rows:
        scores = axis_scores if arm.task == "orientation" else objective.scores
        found = []
        for subject in subjects:
            inside = subject.brain_mask > 0
            found.append(scores(method(subject, choice)[:, inside], _truth(subject, arm.task)[:, inside]))
        return found

    best = max(grid, key=lambda choice: np.nanmean([objective.value(row) for row in rows(few, choice)]))
    tests = {
        cohort.name: columns_of(rows([runner.subject(cohort, n) for n in range(cohort.subjects)], best))
        for cohort in arm.tests
    }
    return {"chosen": best, "tests": tests}


def _truth(subject: Subject, task: str) -> Tensor:
    """(k, X, Y, Z), axes in the world frame."""
    if task == "orientation":
        return subject.peaks_world[:3]
    return {"tissue": subject.dseg, "crossings": subject.npeaks}[task][None].float()


def threshold_tissue(subject: Subject, choice: tuple[float, float]) -> Tensor:
    """(1, X, Y, Z): fluid above the limit of MD, of the rest white matter above that of FA, else grey matter."""
    metrics = _tensor(subject)
    fa, md = metrics.fa[0], metrics.md[0]
    return torch.where(md > choice[1], 3, torch.where(fa > choice[0], 1, 2)).float()


def _tensor(subject: Subject) -> Any:
    table = subject.table
    return tensor_metrics(fit_tensor(subject.image.as_tensor()[None], table.bvals[None], table.bvecs[None]))


def _count(subject: Subject, choice: tuple[float, float]) -> Tensor:
    rule = PeakRule(relative=choice[0], absolute=choice[1])
    return fibre_labels(subject.image.as_tensor(), subject.table, rule=rule).npeaks.float()[None]


def _peaks(subject: Subject, choice: str) -> Tensor:
    """(3, X, Y, Z) largest peak of the deconvolution in the world frame, whatever the threshold of the others."""
    return fibre_labels(subject.image.as_tensor(), subject.table).peaks_world[:3]


def _principal(subject: Subject, choice: str) -> Tensor:
    axis: Tensor = _tensor(subject).v1[0]
    return axis


CHOSEN: Mapping[str, Mapping[str, tuple[Callable[[Subject, Any], Tensor], list[Any]]]] = {
    "thresholds": {"tissue": (threshold_tissue, list(product(FA, MD)))},
    "deconvolution": {
        "crossings": (_count, list(product(RELATIVE, ABSOLUTE))),
        "orientation": (_peaks, ["largest peak"]),
    },
    "tensor": {"orientation": (_principal, ["principal axis"])},
}
