"""Trained models in MLflow's Model Registry, where `mlflow models serve` and `mlflow.pyfunc.load_model` find them."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.pyfunc import PythonModel

import dmri_monai
from dmri_monai.failures import first_cause
from dmri_monai.inference.model import load_model
from dmri_monai.inference.result import Prediction
from dmri_monai.inference.spec import spec_path
from dmri_monai.integrations.mlflow_runs import store_uri
from dmri_monai.integrations.tracking import run_record
from dmri_monai.io.leftovers import sweep, temporary_name
from dmri_monai.scan import Scan

__all__ = ["DWIModel", "register_model"]

logger = logging.getLogger(__name__)
SCANS = "DMRI_MONAI_SCANS"  # environment variable: folders whose scans a server reads, separated as in PATH
SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # which MLflow sets in the processes of its server
LONGEST = 500  # characters of an error that a server answers with

# a model is stored as code, not pickled: loading a pickle runs whatever it holds
CODE = """from mlflow.models import set_model

from dmri_monai.integrations.mlflow import DWIModel

set_model(DWIModel())
"""


class DWIModel(PythonModel):
    """MLflow pyfunc of a checkpoint.

    predict: rows, each {"scan": path of a DWI file} or {"image", "bvals", "bvecs", "affine"} as of
    :func:`dmri_monai.predict`; returns one dictionary a row: "prediction" (C, X, Y, Z) as nested lists, "affine",
    "class_names", "warnings", "provenance".  Behind `mlflow models serve`, only scans in the folders of the environment
    variable DMRI_MONAI_SCANS are read, and errors are one short line.
    """

    def load_context(self, context: Any) -> None:
        self.model = load_model(Path(context.artifacts["model"], "model.pt"))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # hints become a schema
        if os.environ.get(SERVING, "false").lower() not in ("true", "1"):
            return [_plain(self._one(row)) for row in _rows(model_input)]
        try:
            return [_plain(self._one(_checked(row))) for row in _rows(model_input)]
        except Exception as error:  # which the server would answer with a traceback
            message = str(first_cause(error)) or type(error).__name__
            logger.warning("refused: %s", message[:LONGEST])
            raise _Refusal(message[:LONGEST], error_code=INVALID_PARAMETER_VALUE) from None

    def _one(self, row: Mapping[str, Any]) -> Prediction:
        threshold = self.model.spec.b0_threshold
        if "scan" in row:
            return self.model.predict(Scan.read(str(row["scan"]), b0_threshold=threshold))
        missing = sorted({"image", "bvals", "bvecs", "affine"} - set(row))
        if missing:
            raise ValueError(
                f"a row needs 'scan', or 'image', 'bvals', 'bvecs' and 'affine'; missing {missing}, got {sorted(row)}"
            )
        return self.model.predict(
            Scan.of_arrays(row["image"], row["bvals"], row["bvecs"], row["affine"], b0_threshold=threshold)
        )


class _Refusal(MlflowException):
    """An error whose message stays as it is: the server puts the whole request before that of others."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "message" or "message" not in self.__dict__:
            super().__setattr__(name, value)


def _checked(row: Any) -> Mapping[str, Any]:
    """A row of a request, whose `scan` lies where the server may read, links followed; ValueError or TypeError else."""
    if not isinstance(row, Mapping):
        raise TypeError(f"a row is {type(row).__name__}, expected a dictionary")
    if "scan" in row:
        path = row["scan"]
        if not isinstance(path, str):
            raise TypeError(f"'scan' is {type(path).__name__}, expected the path of a DWI file")
        folders = [Path(name).resolve() for name in os.environ.get(SCANS, "").split(os.pathsep) if name]
        if not any(Path(path).resolve().is_relative_to(folder) for folder in folders):
            raise ValueError(
                f"this server reads the scans in the folders of {SCANS} alone, of which there are {len(folders)}"
            )
    return row


def register_model(
    checkpoint: str | Path, name: str, store: str | Path | None = None, run_id: str | None = None
) -> str:
    """Enter `checkpoint` (a model.pt with its model.json) as a new version of the registered model `name`.

    store: as of `dmri-monai runs`; None is the store of the training in whose folder the checkpoint lies.  run_id: the
    run the version belongs to; None is that training's, or a new run.  Returns the URI, "models:/<name>/<version>".
    ValueError or OSError for a checkpoint without settings, or a store that does not answer.
    """
    checkpoint = Path(checkpoint)
    _ = load_model(checkpoint, "cpu").task
    record = run_record(checkpoint.parent)
    uri = record["tracking_uri"] if store is None and record else store_uri(store)
    run_id = run_id or (record.get("run_id") if store is None else None)
    sweep(Path(tempfile.gettempdir()))
    with _store(uri), tempfile.TemporaryDirectory(prefix=temporary_name("model")) as temporary:
        folder, code = Path(temporary, "weights"), Path(temporary, "model.py")
        folder.mkdir()
        code.write_text(CODE, encoding="utf-8")
        shutil.copyfile(checkpoint, folder / "model.pt")
        shutil.copyfile(spec_path(checkpoint), folder / "model.json")
        try:
            with mlflow.start_run(run_id=run_id):
                logged = mlflow.pyfunc.log_model(
                    name="model",
                    python_model=str(code),
                    artifacts={"model": str(folder)},
                    registered_model_name=name,
                    pip_requirements=[f"dmri-monai=={dmri_monai.__version__}"],
                )
        except MlflowException as error:
            raise OSError(f"MLflow store {uri}: {error}") from error
    return f"models:/{name}/{logged.registered_model_version}"


@contextmanager
def _store(uri: str) -> Iterator[None]:
    """MLflow writes to `uri` inside; it tells its choice to the environment, where a later training would find it."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)  # None takes it out of the environment


def _rows(model_input: Any) -> Iterable[Mapping[str, Any]]:
    """Rows of what MLflow hands over: a data frame from its server, else as given."""
    if hasattr(model_input, "to_dict"):
        return model_input.to_dict(orient="records")  # type: ignore[no-any-return]
    return [model_input] if isinstance(model_input, Mapping) else model_input


def _plain(found: Prediction) -> dict[str, Any]:
    return {
        "prediction": found.image.tolist(),
        "affine": found.image.affine.tolist(),
        "class_names": list(found.class_names),
        "warnings": list(found.warnings),
        "provenance": dict(found.provenance),
    }
