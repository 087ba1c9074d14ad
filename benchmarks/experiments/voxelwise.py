"""The yardstick without a network: logistic regression on rotation invariants of a voxel and its surroundings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import dmri_monai
from benchmarks.experiments.arms import digest
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.run import Runner
from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_dwi, read_nifti
from dmri_monai.io.datasets import sample_subjects, subjects
from dmri_monai.qspace.harmonics import signal_to_harmonics

__all__ = ["VOXELWISE", "invariants", "voxelwise_line"]

VOXELWISE = "voxelwise"
DEGREES = ((0, 1), (1, 2), (2, 7), (7, 16))  # b0, l = 0, 2, 4: channels of one shell
WINDOWS = (3, 5)  # voxels


def invariants(image: Tensor, table: GradientTable, shell: float) -> Tensor:
    """(12, X, Y, Z) of raw volumes (N, X, Y, Z): b0 and the norms of the harmonic coefficients of degree 0, 2 and 4
    of one shell (s/mm²), then their means over 3³ and 5³ voxels.
    """
    # norms do not depend on the frame
    channels = signal_to_harmonics(image[None], table.bvals[None], table.bvecs[None], shells=[shell])
    norms = torch.cat([channels[:, a:b].norm(dim=1, keepdim=True) for a, b in DEGREES], dim=1)
    means = [F.avg_pool3d(norms, n, stride=1, padding=n // 2) for n in WINDOWS]
    return torch.cat([norms, *means], dim=1)[0]


def voxelwise_line(
    runner: Runner,
    experiment: str,
    labels: Mapping[str, Any],
    seed: int,
    train: Cohort,
    tests: tuple[Cohort, ...],
    train_subjects: int,
) -> None:
    """Add the line of a regression on the subjects that a network of `seed` learns from, unless it is there."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    content = [experiment, labels, seed, asdict(train), [asdict(test) for test in tests], train_subjects]
    key = digest(["voxelwise", content])
    if runner.results.get(key) is not None:
        return
    start = time.perf_counter()
    parts = subjects(train.write(runner.work / "data"), {"train": 0.8, "val": 0.2}, seed, LABELS, masked=True)
    pairs = list(_voxels(sample_subjects(parts["train"], train_subjects, seed), train))
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    model.fit(np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs]))
    fitted = time.perf_counter() - start
    scores = {test.name: _scores(runner, model, test) for test in tests}
    runner.results.add(
        {
            "key": key, "experiment": experiment, "labels": dict(labels), "seed": seed, "tests": scores,
            "n_parameters": pairs[0][0].shape[1] + 1, "train_subjects": train_subjects,
            "train_seconds": round(fitted, 2), "wall_seconds": round(time.perf_counter() - start, 1),
            "device": "cpu", "versions": {"dmri_monai": dmri_monai.__version__, "torch": torch.__version__},
        }
    )  # fmt: skip


LABELS = {"label": "lesion"}


def _voxels(items: list[dict[str, Any]], cohort: Cohort) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features (voxels, 12) and labels (voxels,) in the brain mask of every scan."""
    for item in items:
        image, table = read_dwi(item["image"])
        features = invariants(image.as_tensor(), table, cohort.shells[0][0])
        inside = read_nifti(item["mask"]).as_tensor()[0] > 0
        label = read_nifti(item["label"]).as_tensor()[0]
        yield features[:, inside].T.numpy(), label[inside].numpy()


def _scores(runner: Runner, model: Any, cohort: Cohort) -> dict[str, list[float | None]]:
    """Column -> values of the subjects in their order, as evaluate.json names and defines them."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    folder = cohort.write(runner.work / "data")
    items = subjects(folder, {"test": 1.0}, 0, LABELS, masked=True)["test"]
    rows = []
    for features, label in _voxels(sorted(items, key=lambda item: str(item["image"])), cohort):
        found, true = model.predict_proba(features)[:, 1], label > 0
        ranked = 0 < true.sum() < true.size
        rows.append(
            {
                "average_precision": average_precision_score(true, found) if ranked else None,
                "roc_auc": roc_auc_score(true, found) if ranked else None,
                "dice": 2.0 * ((found > 0.5) & true).sum() / max((found > 0.5).sum() + true.sum(), 1),
            }
        )
    return {k: [None if row[k] is None else round(float(row[k]), 5) for row in rows] for k in rows[0]}
