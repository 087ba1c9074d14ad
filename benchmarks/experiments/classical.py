"""Networks against classical methods on the same scans, scored by the same metrics.

Crossings: constrained spherical deconvolution by DIPY; orientation: that or the tensor's principal direction; tissue:
DIPY's median_otsu, then thresholds of FA and MD.  The choices are made on subjects of the training cohort.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dmri_monai
from benchmarks.experiments.arms import Arm, Budget, digest
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.run import Runner, objective
from benchmarks.experiments.sizes import WHOLE, Size
from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_dwi, read_nifti
from dmri_monai.io.bids import data_list
from dmri_monai.metrics import AngularError, ClassificationScore
from dmri_monai.qspace.b0 import brain_mask, mean_b0
from dmri_monai.qspace.tensor import fit_tensor, tensor_metrics
from dmri_monai.reference import PeakRule, fibre_labels
from dmri_monai.tasks import find_task

__all__ = ["NAME", "run", "threshold_tissue"]

NUMBERS = ("no fibre", "1 fibre", "2 fibres", "3 fibres")
NAME = "classical"
METHODS = ("plain", WHOLE, "equivariant")
TASKS = ("tissue", "crossings", "orientation")
RELATIVE_PEAKS, ABSOLUTE_PEAKS = (0.1, 0.35), (0.2, 0.25, 0.3, 0.35, 0.4, 0.5)  # least heights: PeakRule
FA_LIMITS, MD_LIMITS = (0.15, 0.2, 0.25, 0.3, 0.35), (1.2e-3, 1.5e-3, 1.8e-3, 2.1e-3, 2.4e-3)  # MD in mm²/s
Scores = dict[str, float]


def run(runner: Runner, size: Size) -> None:
    """Networks of every task and seed, and the classical method of every task."""
    train, test = cohorts(size)
    for name in TASKS:
        _classical(runner, name, train, test)
        for method in METHODS:
            settings = size.settings(method, name, wide=True)
            arm = Arm(NAME, {"method": method, "task": name}, 0, train, settings, Budget(size.steps), (test,))
            runner.run(arm.with_seeds(size.seeds))


def cohorts(size: Size) -> tuple[Cohort, Cohort]:
    """To train or choose parameters on, and to test: 32 directions."""
    protocol: dict[str, Any] = {"shells": ((1000.0, 32),)}
    return size.cohort("training", 501, test=False, **protocol), size.cohort("test", 502, **protocol)


def _classical(runner: Runner, name: str, train: Cohort, test: Cohort) -> None:
    """The line of the classical method of task `name`, unless it is there."""
    method, grid = METHODS_BY_TASK[name]
    content = {"classical": name, "grid": grid, "train": asdict(train), "test": asdict(test)}
    key = digest(content)
    if runner.results.get(key) is not None:
        return
    start = time.perf_counter()
    lower = objective(name)["lower_is_better"]
    few = replace(train, subjects=max(1, train.subjects // 5))  # as many as validate a network
    trials = [(_mean(_scores(runner, few, name, method, choice)), choice) for choice in grid]
    best = min(trials, key=lambda trial: trial[0] if lower else -trial[0])[1]
    rows = list(_scores(runner, test, name, method, best))
    tests = {column: [round(row[column], 5) for row in rows] for column in rows[0]}
    runner.results.add(
        {
            "key": key, "experiment": NAME, "labels": {"method": "classical", "task": name}, "seed": 0,
            "chosen": best, "trials": len(grid), "tests": {test.name: tests},
            "wall_seconds": round(time.perf_counter() - start, 1), "device": "cpu",
            "versions": {"dmri_monai": dmri_monai.__version__, "torch": torch.__version__},
        }
    )  # fmt: skip


def _mean(rows: Iterator[Scores]) -> float:
    """Mean over subjects of the key score, which for classes is a mean of its own."""
    return float(np.nanmean([_key_score(row) for row in rows]))


def _key_score(row: Scores) -> float:
    return (
        row["angular_error_median_deg"]
        if "angular_error_median_deg" in row
        else float(np.nanmean(list(row.values())))
    )


def _scores(runner: Runner, cohort: Cohort, name: str, method: Method, choice: Any) -> Iterator[Scores]:
    """Scores of every subject of `cohort` under the parameters `choice`."""
    folder = cohort.write(runner.work / "data")
    for item in data_list(folder, labels={"label": find_task(name).label}):
        image, table = read_dwi(item["image"])
        label = read_nifti(item["label"]).as_tensor()
        inside = read_nifti(item["mask"]).as_tensor() > 0
        label = torch.where(inside, label, find_task(name).outside)
        yield SCORES[name](method(image.as_tensor(), table, choice), label)


def threshold_tissue(image: Tensor, table: GradientTable, choice: tuple[float, float]) -> Tensor:
    """(1, X, Y, Z) tissue of raw volumes (N, X, Y, Z): outside DIPY's mask 0, MD above its limit 3 (fluid), else
    FA above its limit 1 (white matter), else 2.  choice: limits of FA and of MD (mm²/s).
    """
    fa, md, inside = _maps(image, table)
    tissue = torch.where(md > choice[1], 3, torch.where(fa > choice[0], 1, 2))
    return (tissue * inside).float().unsqueeze(0)


def _maps(image: Tensor, table: GradientTable) -> tuple[Tensor, Tensor, Tensor]:
    """FA, MD (mm²/s) and brain mask, each (X, Y, Z)."""
    b0 = mean_b0(image, table.bvals, table.b0_threshold)
    inside = brain_mask(b0.double(), median_radius=1)
    metrics = tensor_metrics(fit_tensor(image[None], table.bvals[None], table.bvecs[None]))
    return metrics.fa[0, 0], metrics.md[0, 0], inside


def _count_peaks(image: Tensor, table: GradientTable, choice: tuple[float, float]) -> Tensor:
    rule = PeakRule(relative=choice[0], absolute=choice[1])
    return fibre_labels(image, table, rule=rule).npeaks.float().unsqueeze(0)


def _peaks(image: Tensor, table: GradientTable, choice: str) -> Tensor:
    """(3k, X, Y, Z) directions in the world frame; choice: "csd" or "tensor"."""
    if choice == "csd":  # the largest peak does not depend on the threshold of the others
        return fibre_labels(image, table).peaks_world
    return tensor_metrics(fit_tensor(image[None], table.bvals[None], table.bvecs[None])).v1[0]


def _tissue_scores(pred: Tensor, label: Tensor) -> Scores:
    dice = {}
    for number, name in enumerate(find_task("tissue").class_names, 1):
        found, true = pred == number, label == number
        both = 2.0 * float((found & true).sum())
        dice[f"dice_{name}"] = both / max(float(found.sum() + true.sum()), 1.0)
    return dice


def _crossing_scores(pred: Tensor, label: Tensor) -> Scores:
    metric = ClassificationScore(4, names=NUMBERS)
    metric(pred[None], label[None])
    values = metric.get_buffer()[0].tolist()  # type: ignore[index]
    return {f"macro_f1_{name}": value for name, value in zip(NUMBERS, values, strict=True)}


def _orientation_scores(pred: Tensor, label: Tensor) -> Scores:
    metric = AngularError()
    metric(pred[None], label[None])
    names, values = metric.names, metric.get_buffer()[0].tolist()  # type: ignore[index]
    return {f"angular_error_{name}": value for name, value in zip(names, values, strict=True)}


Method = Callable[[Tensor, GradientTable, Any], Tensor]
SCORES = {"tissue": _tissue_scores, "crossings": _crossing_scores, "orientation": _orientation_scores}
METHODS_BY_TASK: dict[str, tuple[Method, list[Any]]] = {
    "tissue": (threshold_tissue, list(product(FA_LIMITS, MD_LIMITS))),
    "crossings": (_count_peaks, list(product(RELATIVE_PEAKS, ABSOLUTE_PEAKS))),
    "orientation": (_peaks, ["csd", "tensor"]),
}
