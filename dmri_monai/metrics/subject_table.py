"""Tables of an evaluation: every metric of every subject as CSV, and mean ± standard deviation."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.utils import string_list_all_gather
from torch import Tensor

from dmri_monai.io.nifti import nifti_stem
from dmri_monai.io.writing import replacing

__all__ = ["SubjectTable", "mean_sd"]


class SubjectTable:
    """Ignite handler: at the end of an evaluation writes `path`, one row per subject, and `<stem>_summary.csv`.

    The rows come from `engine.state.metric_details`, where MONAI's metrics are too; a matrix per subject is
    written entry by entry.  The summary has mean, standard deviation (n - 1), their text "mean ± SD" and the number of
    subjects with a value, for each column.  Column names: `columns` (metric -> names, e.g. {"dice": ["WM", "GM",
    "CSF"]}), else those of the metric, else numbers.  A subject is called by the file name of its `image_key`, or
    by its number where the batch has no file names.  Attach it after the metrics.
    """

    def __init__(
        self, path: str | Path, columns: Mapping[str, Sequence[str]] | None = None, image_key: str = "image"
    ) -> None:
        self.path = Path(path)
        self.columns = {name: tuple(names) for name, names in (columns or {}).items()}
        self.image_key = image_key
        self._subjects: list[str] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._subjects = []

    def _collect(self, engine: Engine) -> None:
        batch = engine.state.batch
        if isinstance(batch, list):
            self._subjects += [_stem(_file_names(item.get(self.image_key), 1)[0]) for item in batch]
        else:
            image = batch.get(self.image_key)
            self._subjects += [_stem(name) for name in _file_names(image, len(image))]

    def _write(self, engine: Engine) -> None:
        subjects = string_list_all_gather(self._subjects) if idist.get_world_size() > 1 else self._subjects
        if idist.get_rank() != 0:
            return
        columns = self._values(engine)
        rows = [{"subject": name or str(i)} for i, name in enumerate(subjects)]
        for name, values in columns.items():
            if len(values) != len(rows):
                raise ValueError(f"metric {name!r} has {len(values)} rows for {len(rows)} subjects")
            for row, value in zip(rows, values.tolist(), strict=True):
                row[name] = value
        summary = [_summary(name, values) for name, values in columns.items()]
        with replacing(self.path, self.path.with_name(f"{self.path.stem}_summary.csv")) as temporary:
            for path, content in zip(temporary, (rows, summary), strict=True):
                path.write_text(_csv(content), encoding="utf-8")

    def _values(self, engine: Engine) -> dict[str, Tensor]:
        """Name of the column -> (subjects,) values."""
        named = {**getattr(engine.state, "metric_columns", {}), **self.columns}
        found = {}
        for metric, details in getattr(engine.state, "metric_details", {}).items():
            values = torch.as_tensor(details).as_subclass(Tensor).cpu().double()
            values = values.reshape(len(values), -1)
            names = named.get(metric, tuple(str(i) for i in range(values.shape[1])))
            if len(names) != values.shape[1]:
                raise ValueError(
                    f"metric {metric!r} has {values.shape[1]} columns, but {len(names)} names: {names}"
                )
            single = len(names) == 1
            found.update({metric if single else f"{metric}_{n}": values[:, i] for i, n in enumerate(names)})
        return found


def mean_sd(values: Tensor) -> tuple[float, float, int]:
    """Mean and standard deviation (n - 1) of (V,) values that are not NaN, and their number.

    >>> mean_sd(torch.tensor([1.0, 3.0, float("nan")]))
    (2.0, 1.4142135623730951, 2)
    """
    kept = values.double()[~values.isnan()]
    mean = float(kept.mean()) if len(kept) else float("nan")
    return mean, float(kept.std()) if len(kept) > 1 else float("nan"), len(kept)


def _summary(name: str, values: Tensor) -> dict[str, Any]:
    mean, sd, n = mean_sd(values)
    return {"metric": name, "mean": mean, "sd": sd, "text": f"{mean:.3f} ± {sd:.3f}", "n": n}


def _file_names(image: Any, n: int) -> list[str]:
    """Files that an image of `n` subjects came from, "" where nothing tells."""
    found = getattr(image, "meta", {}).get("filename_or_obj", "")
    names = [str(name) for name in found] if isinstance(found, list | tuple) else [str(found)]
    return names if len(names) == n else [""] * n


def _stem(name: str) -> str:
    try:
        return nifti_stem(Path(name)) if name else ""
    except ValueError:  # some other kind of file
        return Path(name).stem


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["subject"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
