"""The runs of an MLflow store as a table, and how to settle those that a killed process left behind."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Run", "list_runs", "mark_dead", "runs_table", "store_uri"]


@dataclass(frozen=True)
class Run:
    """One MLflow run; `start` is in seconds since the epoch, `minutes` its length so far."""

    run_id: str
    name: str
    experiment: str
    status: str
    start: float
    minutes: float
    metrics: dict[str, float]


def store_uri(store: str | Path | None = None) -> str:
    """Tracking URI of `store`: a URI, an sqlite file, a folder that holds mlruns.db; None: MLFLOW_TRACKING_URI.

    Raises FileNotFoundError for an sqlite file that does not exist: MLflow would create an empty store there.
    """
    text = str(store or os.environ.get("MLFLOW_TRACKING_URI") or "")
    if not text:
        raise ValueError("no MLflow store given and MLFLOW_TRACKING_URI is not set")
    if "://" in text and not text.startswith("sqlite:///"):
        return text
    path = Path(text.removeprefix("sqlite:///"))
    path = path / "mlruns.db" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no MLflow store at {path}")
    with path.open("rb") as file:
        if file.read(15) != b"SQLite format 3":
            raise ValueError(f"not an sqlite file: {path}")
    return f"sqlite:///{path.resolve()}"


def list_runs(store: str | Path | None = None) -> list[Run]:
    """All runs of all experiments of `store` (see `store_uri`), newest first; OSError if it does not answer."""
    client = _client(store)
    from mlflow.exceptions import MlflowException

    try:
        return _all_runs(client)
    except MlflowException as error:
        raise OSError(f"MLflow store {store_uri(store)}: {error}") from error


def _all_runs(client: Any) -> list[Run]:
    names = {e.experiment_id: e.name for e in client.search_experiments()}
    runs: list[Run] = []
    page = None
    while page != "":
        found = client.search_runs(list(names), order_by=["attributes.start_time DESC"], page_token=page)
        runs += [_run(r, names[r.info.experiment_id]) for r in found]
        page = found.token or ""
    return runs


def mark_dead(run_id: str, store: str | Path | None = None) -> str:
    """Set a run that is still RUNNING to FAILED and return its full id; a unique beginning of the id is enough.

    A process that was killed cannot do it itself.  ValueError for an unknown or ambiguous id or a settled run.
    """
    found = [r for r in list_runs(store) if r.run_id.startswith(run_id)]
    if len(found) != 1:
        raise ValueError(
            f"run {run_id}: {len(found)} runs of the store have an id that begins so, expected 1"
        )
    if found[0].status != "RUNNING":
        raise ValueError(f"run {found[0].run_id} is {found[0].status}, only a RUNNING run can be marked dead")
    _client(store).set_terminated(found[0].run_id, "FAILED")
    return found[0].run_id


def runs_table(runs: list[Run]) -> str:
    """`runs` as text, one line each, with up to four metrics."""
    if not runs:
        return "no runs"
    rows = [("RUN", "NAME", "STATUS", "STARTED", "MINUTES", "METRICS")]
    for run in runs:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.start))
        metrics = " ".join(f"{k}={v:.4g}" for k, v in sorted(run.metrics.items())[:4])
        rows.append((run.run_id[:8], run.name, run.status, started, f"{run.minutes:.1f}", metrics))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _client(store: str | Path | None) -> Any:
    uri = store_uri(store)
    from mlflow import MlflowClient  # takes seconds; a wrong path is reported at once

    return MlflowClient(tracking_uri=uri)


def _run(run: Any, experiment: str) -> Run:
    start = run.info.start_time / 1000
    end = run.info.end_time / 1000 if run.info.end_time else time.time()
    name = run.info.run_name or ""
    minutes = round((end - start) / 60, 1)
    return Run(run.info.run_id, name, experiment, run.info.status, start, minutes, dict(run.data.metrics))
