"""MLflow tracking of bundle runs: one run per training, also across resumes, never a second one in it."""

from __future__ import annotations

import inspect
import json
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from dmri_monai.io.writing import replacing
from dmri_monai.workflows.flags import flag

__all__ = ["MLflowRun", "LogMetrics", "current_config", "default_store"]

RUN_FILE = "mlflow_run.json"
EXPERIMENT = "dmri_monai"


def default_store(output_dir: str | Path) -> str:
    """MLFLOW_TRACKING_URI if set, else sqlite beside the output folder, shared by all its neighbours."""
    beside = Path(output_dir).resolve().parent / "mlruns.db"
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside}"


def current_config() -> dict[str, Any]:
    """The merged configuration, overrides included, of the bundle whose expression calls this function.

    MONAI gives expressions no handle on their parser, so it is looked up among the callers.
    """
    for frame in inspect.stack(context=0):
        parser = frame.frame.f_locals.get("self")
        if isinstance(parser, ConfigParser):
            return {k: v for k, v in parser.get().items() if k != parser.meta_key}
    raise RuntimeError("current_config() works only in an expression of a bundle config")


class MLflowRun:
    """Ignite handler that keeps one MLflow run for the engine it is attached to.

    Logs the scalar settings as parameters, the whole `config` as an artifact, the metrics of every epoch, and at the
    end the files in `artifacts` that exist. The run is FINISHED on completion and FAILED on an exception; after a kill
    it stays RUNNING until `resume` continues it: its id is kept in `output_dir`/mlflow_run.json.
    enabled=False makes every method a no-op.
    """

    def __init__(
        self,
        kind: str,
        output_dir: str | Path,
        config: dict[str, Any],
        tracking_uri: str | None = None,
        artifacts: list[str] | None = None,
        resume: bool = False,
        enabled: bool = True,
    ) -> None:
        self.kind = kind
        self.output_dir = Path(output_dir)
        self.config = config
        self.tracking_uri = tracking_uri or default_store(output_dir)
        self.artifacts = artifacts or []
        self.resume = flag("resume", resume)
        self.enabled = flag("mlflow", enabled)
        self.run_id: str | None = None
        self._client: Any = None

    def attach(self, engine: Engine) -> None:
        if not self.enabled:
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.log_metrics)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.fail)

    def start(self, engine: Engine) -> None:
        from mlflow import MlflowClient  # seconds of imports, needed only now

        self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.tracking_uri.startswith("sqlite:///"):
            Path(self.tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=self.tracking_uri)
        run_file = self.output_dir / RUN_FILE
        if self.resume and run_file.is_file():
            self.run_id = json.loads(run_file.read_text())["run_id"]
            self._client.update_run(self.run_id, status="RUNNING")
            return
        name = f"{self.kind}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        self.run_id = self._client.create_run(self._experiment(), run_name=name).info.run_id
        content = {"run_id": self.run_id, "run_name": name, "tracking_uri": self.tracking_uri}
        with replacing(run_file) as (temporary,):
            temporary.write_text(json.dumps(content, indent=2))
        self._log_config()

    def _experiment(self) -> str:
        known = self._client.get_experiment_by_name(EXPERIMENT)
        if known:
            return known.experiment_id
        location = None
        if self.tracking_uri.startswith("sqlite:///"):  # a database cannot hold files: keep them beside it
            location = (Path(self.tracking_uri.removeprefix("sqlite:///")).parent / "mlruns").as_uri()
        return self._client.create_experiment(EXPERIMENT, artifact_location=location)

    def _log_config(self) -> None:
        plain = json.loads(json.dumps(self.config, default=str))
        self._client.log_dict(self.run_id, plain, "config.json")
        for key, value in plain.items():
            if isinstance(value, bool | int | float | str) and key not in ("imports", "run"):
                self._client.log_param(self.run_id, key, value)

    def log_metrics(self, engine: Engine) -> None:
        """Log the scalar metrics of `engine` at its epoch."""
        if not (self.enabled and self.run_id):
            return
        for name, value in engine.state.metrics.items():
            if isinstance(value, int | float):
                self._client.log_metric(self.run_id, name, float(value), step=engine.state.epoch)

    def log_files(self, paths: Sequence[str | Path]) -> None:
        """Copy those of `paths` that exist into the run's artifacts."""
        for path in paths:
            if self.run_id and Path(path).is_file():
                self._client.log_artifact(self.run_id, str(path))

    def finish(self, engine: Engine) -> None:
        self.log_files(self.artifacts)
        self._client.set_terminated(self.run_id, "FINISHED")

    def fail(self, engine: Engine, error: Exception) -> None:
        if self.run_id:
            self._client.set_tag(self.run_id, "error", f"{type(error).__name__}: {error}"[:500])
            self._client.set_terminated(self.run_id, "FAILED")
        raise error  # ignite swallows an exception that has a handler


class LogMetrics:
    """Ignite handler: adds the metrics of another engine (validation) to `run`, at the epoch it ran in."""

    def __init__(self, run: MLflowRun) -> None:
        self.run = run

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.run.log_metrics)
