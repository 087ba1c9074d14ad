"""MLflow tracking of bundle runs: one run per training, also across resumes, never a second one in it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from dmri_monai.failures import on_failure
from dmri_monai.flags import flag
from dmri_monai.io.checksums import checked, with_checksum
from dmri_monai.io.data_record import data_record
from dmri_monai.io.writing import replacing
from dmri_monai.parallel import is_main
from dmri_monai.signals import end_on_sigterm

__all__ = ["MLflowRun", "LogMetrics", "default_store", "run_record"]

logger = logging.getLogger(__name__)
RUN_FILE = "mlflow_run.json"
EXPERIMENT = "dmri_monai"


def default_store(output_dir: str | Path, resume: bool = False) -> str:
    """MLFLOW_TRACKING_URI if set, else sqlite beside the output folder, shared by all its neighbours.

    resume: without MLFLOW_TRACKING_URI, the store of the training that lies in the folder.
    """
    beside = Path(output_dir).resolve().parent / "mlruns.db"
    before = run_record(output_dir).get("tracking_uri") if resume else None
    return os.environ.get("MLFLOW_TRACKING_URI") or before or f"sqlite:///{beside}"


def run_record(output_dir: str | Path) -> dict[str, str]:
    """Id and store of the run of the training in `output_dir`; {} where it was not tracked.

    ValueError naming the file where it is damaged.
    """
    path = Path(output_dir, RUN_FILE)
    if not path.is_file():
        return {}
    try:
        content = checked(json.loads(path.read_bytes()))
        return {name: str(content[name]) for name in ("run_id", "tracking_uri")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it, and the training goes on in a new run of "
            "MLflow; the training itself loses nothing"
        ) from None


def _revision() -> str | None:
    """Commit of the repository the process was started in, "+changes" where files differ; None outside of one."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if changed else "")


class MLflowRun:
    """Ignite handler that keeps one MLflow run for the engine it is attached to.

    Logs the scalar settings as parameters, the whole `config` as an artifact, the record of `data` (see
    :func:`data_record`), the git revision, the metrics of every epoch, and at the end the files in `artifacts` that
    exist. The run is FINISHED on completion and FAILED on an exception, Ctrl-C or SIGTERM; after SIGKILL it stays
    RUNNING until `resume` continues it (its id is kept in `output_dir`/mlflow_run.json) or `dmri-monai runs
    --mark-dead` settles it.  A store that stops answering in between ends the tracking with a warning, never the
    training: `resume` goes on in the same run once it is back.

    parent: name of a run that this one is nested in, made if there is none: the folds of a cross-validation.
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
        data: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
        parent: str | None = None,
    ) -> None:
        self.kind = kind
        self.output_dir = Path(output_dir)
        self.config = config
        self.artifacts = artifacts or []
        self.resume = flag("resume", resume)
        self.enabled = flag("mlflow", enabled)
        self.tracking_uri = tracking_uri or default_store(output_dir, self.resume and self.enabled)
        self.data = data
        self.parent = parent
        self.run_id: str | None = None
        self._client: Any = None
        self._lost = False

    def attach(self, engine: Engine) -> None:
        if not (self.enabled and is_main()):
            return
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.log_metrics)
        engine.add_event_handler(Events.COMPLETED, self.finish)
        on_failure(engine, self.fail)

    def start(self, engine: Engine) -> None:
        """Begin a run, or go on with the one being resumed; OSError when the store does not answer."""
        from mlflow.exceptions import MlflowException  # seconds of imports, needed only now

        try:
            self._start()
        except MlflowException as error:
            raise OSError(
                f"MLflow store {self.tracking_uri}: {error} (`--mlflow false` trains without it)"
            ) from error

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Around what tells the store something: nothing more is told to one that has failed."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:
            self._lost = True
            logger.warning(
                "MLflow store %s is lost (%s): the training goes on, its run %s ends here until `--resume true`",
                *(self.tracking_uri, error, self.run_id),
            )

    def _tracks(self) -> bool:
        return bool(self.enabled and self.run_id and not self._lost)

    def _start(self) -> None:
        from mlflow import MlflowClient

        self.output_dir.mkdir(parents=True, exist_ok=True)
        if self.tracking_uri.startswith("sqlite:///"):
            Path(self.tracking_uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=self.tracking_uri)
        end_on_sigterm()
        record = run_record(self.output_dir) if self.resume else {}
        if record:
            self.run_id = record["run_id"]
            self._client.update_run(self.run_id, status="RUNNING")
            return
        name = f"{self.kind}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        experiment = self._experiment()
        tags = {"mlflow.parentRunId": self._parent(experiment)} if self.parent else {}
        if revision := _revision():
            tags["mlflow.source.git.commit"] = revision
        self.run_id = self._client.create_run(experiment, run_name=name, tags=tags).info.run_id
        content = {"run_id": self.run_id, "run_name": name, "tracking_uri": self.tracking_uri}
        with replacing(self.output_dir / RUN_FILE) as (temporary,):
            temporary.write_text(json.dumps(with_checksum(content), indent=2), encoding="utf-8")
        self._log_config()
        self._log_data()

    def _settle(self, status: str) -> None:
        if self._tracks():
            with self._reaching():
                self._client.set_terminated(self.run_id, status)

    def _parent(self, experiment: str) -> str:
        """Id of the run named `parent`, the same for every fold."""
        chosen = f"tags.parent_of_folds = '{self.parent}'"
        found = self._client.search_runs([experiment], filter_string=chosen, max_results=1)
        if found:
            return str(found[0].info.run_id)
        made = self._client.create_run(
            experiment, run_name=self.parent, tags={"parent_of_folds": self.parent}
        )
        self._client.set_terminated(made.info.run_id, "FINISHED")
        return str(made.info.run_id)

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

    def _log_data(self) -> None:
        if self.data is None:
            return
        record = data_record(self.data, self.config.get("bvecs", "auto"))
        self._client.log_dict(self.run_id, record, "data.json")
        self._client.set_tag(self.run_id, "data_digest", record["digest"])

    def log_metrics(self, engine: Engine) -> None:
        """Log the scalar metrics of `engine` at its epoch."""
        if not self._tracks():
            return
        found = {name: float(v) for name, v in engine.state.metrics.items() if isinstance(v, int | float)}
        with self._reaching():
            for name, value in found.items():
                self._client.log_metric(self.run_id, name, value, step=engine.state.epoch)

    def log_files(self, paths: Sequence[str | Path]) -> None:
        """Copy those of `paths` that exist into the run's artifacts."""
        if not self._tracks():
            return
        with self._reaching():
            for path in filter(os.path.isfile, paths):
                self._client.log_artifact(self.run_id, str(path))

    def finish(self, engine: Engine) -> None:
        self.log_files(self.artifacts)
        self._settle("FINISHED")

    def fail(self, engine: Engine, error: BaseException) -> None:
        if self._tracks():
            with self._reaching():
                self._client.set_tag(self.run_id, "error", f"{type(error).__name__}: {error}"[:500])
        self._settle("FAILED")


class LogMetrics:
    """Ignite handler: adds the metrics of another engine (validation) to `run`, at the epoch it ran in."""

    def __init__(self, run: MLflowRun) -> None:
        self.run = run

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.run.log_metrics)
