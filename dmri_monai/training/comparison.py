"""Comparing evaluators on the same subjects."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from monai.engines import Evaluator

from dmri_monai.integrations.tracking import MLflowRun
from dmri_monai.io.writing import replacing
from dmri_monai.tasks.tasks import Task

__all__ = ["compare", "methods"]


def methods(
    task: Task,
    network: Evaluator,
    shuffled: Evaluator,
    kmeans: Evaluator,
    compared: Mapping[str, Evaluator] | None = None,
) -> dict[str, Evaluator]:
    """What :func:`compare` runs, by name; clustering is a baseline of tissue alone.

    compared: other weights of the network, by name.
    """
    found = {"network": network, **(compared or {}), "network, shuffled b-vectors": shuffled}
    return {**found, "k-means on b0, FA, MD": kmeans} if task.name == "tissue" else found


def compare(
    evaluators: dict[str, Evaluator],
    columns: Sequence[str],
    output_dir: str | Path,
    tracking: MLflowRun | None = None,
    metric: str = "dice",
    average: bool = True,
) -> list[dict[str, str | float]]:
    """Run every evaluator, print and return a table of its mean `metric` per column; `<metric>.csv` has each subject.

    Both tables become artifacts of the run `tracking` keeps.

    `state.metric_details[metric]` of an evaluator: (subjects, columns), such as one a class.  average: a last
    column holds the mean of the others.
    """
    rows, subjects = [], []
    for name, evaluator in evaluators.items():
        evaluator.run()
        values = torch.as_tensor(evaluator.state.metric_details[metric]).cpu()
        means = values.nanmean(dim=0).tolist()
        row = {"method": name, **dict(zip(columns, means, strict=True))}
        rows.append({**row, "mean": sum(means) / len(means)} if average else row)
        for i, subject in enumerate(values.tolist()):
            subjects.append({"method": name, "subject": i, **dict(zip(columns, subject, strict=True))})
    targets = Path(output_dir) / f"{metric}.csv", Path(output_dir) / f"{metric}_summary.csv"
    with replacing(*targets) as temporary:
        for path, content in zip(temporary, (subjects, rows), strict=True):
            path.write_text(_csv(content))
    if tracking is not None:
        tracking.log_files(targets)
    print(_table(rows))
    return rows


def _csv(rows: list[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _table(rows: list[dict]) -> str:
    head = list(rows[0])
    cells = [head] + [[v if isinstance(v, str) else f"{v:.3f}" for v in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
