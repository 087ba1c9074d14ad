"""The end of a tracked training: its best model enters MLflow's Model Registry."""

from __future__ import annotations

import logging
from pathlib import Path

from dmri_monai.integrations.tracking import run_record
from dmri_monai.parallel import is_main

__all__ = ["register_best"]

logger = logging.getLogger(__name__)


def register_best(output_dir: str | Path, name: str | None) -> None:
    """At the end of a training: enter the model.pt of its `output_dir` as `name`; None does nothing.

    ValueError for a training that was not tracked in MLflow.
    """
    if not name or not is_main():
        return
    from dmri_monai.integrations.mlflow import register_model  # which needs MLflow

    checkpoint = Path(output_dir, "model.pt")
    if not run_record(output_dir):
        raise ValueError(
            f"registered_model is {name!r}, but the training was not tracked (mlflow = false); its model {checkpoint} "
            f"can be entered with `dmri-monai register-model {checkpoint} --name {name} --store ...`"
        )
    logger.info("registered %s", register_model(checkpoint, name))
