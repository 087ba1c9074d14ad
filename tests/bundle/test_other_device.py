"""The configs on a device that is not the CPU, from the first step to the report; on a real one: test_cuda.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmri_monai.inference.spec import TAKES
from dmri_monai.tasks import TASKS
from tests.devices.other_device import OTHER, other_device

pytestmark = pytest.mark.slow
STEP = {"max_epochs": 1, "batch_size": 2, "device": str(OTHER)}


@pytest.mark.parametrize("pretext", ["artifacts", "masked"])
@pytest.mark.parametrize("architecture", [a for a in TAKES if a != "invariants"])  # which have no pretext
def test_pretext_trains_on_another_device(prepare, dataset_dir, tmp_path, architecture, pretext):
    model = {"architecture": architecture, "size": "tiny", "network_options": {}}
    out = {"dataset_dir": dataset_dir, "output_dir": str(tmp_path)}
    with other_device():
        workflow = prepare("pretrain", pretext=pretext, **model, **out, **STEP)
        workflow.run()
        assert next(workflow.parser.get_parsed_content("network").parameters()).device == OTHER
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("task", TASKS)
def test_task_trains_resumes_evaluates_and_infers_on_another_device(prepare, dataset_dir, tmp_path, task):
    architecture = "any" if task == "fod" else "equivariant"  # degree 8 is told voxel by voxel
    model = {"architecture": architecture, "size": ["2x0e+1x2e", "4x0e+1x2e"], "network_options": {}}
    out = {"dataset_dir": dataset_dir, "output_dir": str(tmp_path / "training")}
    own = {
        "checkpoint": str(tmp_path / "training" / "model.pt"),
        "device": str(OTHER),
        "dataset_dir": dataset_dir,
    }
    with other_device():
        prepare("train", objective=task, **model, **out, **STEP).run()
        workflow = prepare("train", objective=task, resume=True, **model, **out, **{**STEP, "max_epochs": 2})
        workflow.run()
        (value,) = workflow.parser.get_parsed_content("validate#evaluator").state.metrics.values()
        prepare("evaluate", objective=task, output_dir=str(tmp_path / "evaluation"), **own).run()
        prepare("inference", output_dir=str(tmp_path / "inference"), ensemble="flips", **own).run()
    assert np.isfinite(value)
    assert (tmp_path / "inference" / "report.html").is_file()
