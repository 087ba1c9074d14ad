"""Comparing methods on the same subjects."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator, default_prepare_batch
from monai.inferers import Inferer
from monai.transforms import Compose, Invertd, Transform
from torch import nn

from dmri_monai.failures import NameScans
from dmri_monai.inference.precision import autocast, cuda_amp
from dmri_monai.io.writing import replacing
from dmri_monai.training.handlers import Progress
from dmri_monai.training.randomness import SeededDataset
from dmri_monai.transforms import collate_dwi

__all__ = ["MethodEvaluator", "compare"]


class MethodEvaluator(SupervisedEvaluator):
    """MONAI's evaluator of one method, from the files of `data` to the metrics of `objective` on each scan's own grid.

    name: of the method.  load: transforms from files to raw scan and label; encode: from there to what `network` takes.
    objective: of a task's config; its `activate` and `score` stand before and after the way back to the scan's grid.
    keep: transforms of `pred` on that grid, before the score.  postprocessing: instead of these four.  seed: of random
    transforms.
    """

    def __init__(  # noqa: PLR0913  # each one is a block of the config
        self,
        name: str,
        data: Sequence[Mapping[str, Any]],
        load: Sequence[Transform],
        encode: Sequence[Transform],
        network: nn.Module,
        objective: Mapping[str, Any],
        device: torch.device,
        inferer: Inferer,
        *,
        keep: Sequence[Transform] = (),
        postprocessing: Sequence[Transform] | None = None,
        handlers: Sequence[Any] = (),
        prepare_batch: Callable[..., Any] = default_prepare_batch,
        amp: bool = False,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        self.name = name
        preprocessing = Compose([*load, *encode])
        dataset = SeededDataset([dict(item) for item in data], preprocessing, seed)
        if postprocessing is None:
            invert = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True)
            postprocessing = [*_several(objective["activate"]), invert, *keep, *_several(objective["score"])]
        metrics = copy.deepcopy({name: objective[name] for name in ("key_metric", "further_metrics")})
        super().__init__(
            device=device,
            val_data_loader=DataLoader(
                dataset, batch_size=1, num_workers=num_workers, collate_fn=collate_dwi
            ),
            network=autocast(network, amp, device),
            inferer=inferer,
            postprocessing=Compose(postprocessing),
            key_val_metric=metrics["key_metric"],
            additional_metrics=metrics["further_metrics"] if handlers else None,
            val_handlers=[Progress(name), NameScans(), *handlers],
            amp=cuda_amp(amp, device),
            amp_kwargs={"dtype": torch.bfloat16},
            prepare_batch=prepare_batch,
        )


def compare(
    evaluators: Sequence[MethodEvaluator | None],
    objective: Mapping[str, Any],
    output_dir: str | Path,
    tracking: Any = None,
) -> list[dict[str, str | float]]:
    """Run every evaluator; print and return a table of its mean key metric per column; `<metric>.csv` has each subject.

    None stands for a method that does not apply.  objective: of a task's config: its `key_metric` and the names of its
    `columns`, whose mean is a last column where they are classes.  Both tables become artifacts of the run `tracking`
    keeps.
    """
    metric = next(iter(objective["key_metric"]))
    columns = objective["columns"][metric]
    averaged = len(columns) > 1 and not objective["lower_is_better"]
    rows: list[dict[str, Any]] = []
    subjects: list[dict[str, Any]] = []
    for evaluator in filter(None, evaluators):
        evaluator.run()
        values = torch.as_tensor(evaluator.state.metric_details[metric]).cpu()
        means = values.nanmean(dim=0).tolist()
        row = {"method": evaluator.name, **dict(zip(columns, means, strict=True))}
        rows.append({**row, "mean": sum(means) / len(means)} if averaged else row)
        for i, subject in enumerate(values.tolist()):
            subjects.append(
                {"method": evaluator.name, "subject": i, **dict(zip(columns, subject, strict=True))}
            )
    targets = Path(output_dir) / f"{metric}.csv", Path(output_dir) / f"{metric}_summary.csv"
    with replacing(*targets) as temporary:
        for path, content in zip(temporary, (subjects, rows), strict=True):
            path.write_text(_csv(content), encoding="utf-8")
    if tracking is not None:
        tracking.log_files(targets)
    print(_table(rows))
    return rows


def _several(transforms: Any) -> list[Any]:
    return list(transforms) if isinstance(transforms, list | tuple) else [transforms]


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
