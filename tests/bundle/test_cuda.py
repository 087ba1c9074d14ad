"""The configs on a GPU, in bf16."""

import numpy as np
import pytest
import torch

from dmri_monai.inference.spec import TAKES
from dmri_monai.tasks import TASKS

pytestmark = pytest.mark.gpu
STEP = {"max_epochs": 1, "batch_size": 2, "accumulation_steps": 2, "device": "cuda:0", "amp": True}


@pytest.mark.parametrize("pretext", ["artifacts", "masked"])
@pytest.mark.parametrize("architecture", [a for a in TAKES if a != "invariants"])  # which have no pretext
def test_pretext_trains_on_cuda_in_bf16(prepare, dataset_dir, tmp_path, architecture, pretext):
    model = {"architecture": architecture, "size": "tiny", "network_options": {}}
    workflow = prepare(
        "pretrain", dataset_dir=dataset_dir, output_dir=str(tmp_path), pretext=pretext, **model, **STEP
    )
    workflow.run()
    assert next(workflow.parser.get_parsed_content("network").parameters()).is_cuda
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("task", TASKS)
def test_task_trains_resumes_evaluates_and_infers_on_cuda(prepare, dataset_dir, tmp_path, task):
    model = {"architecture": "equivariant", "size": "tiny", "network_options": {}}
    out = {"dataset_dir": dataset_dir, "output_dir": str(tmp_path / "training")}
    prepare("train", objective=task, **model, **out, **STEP).run()
    workflow = prepare("train", objective=task, resume=True, **model, **out, **{**STEP, "max_epochs": 2})
    workflow.run()
    (value,) = workflow.parser.get_parsed_content("validate#evaluator").state.metrics.values()
    assert np.isfinite(value)
    own = {"checkpoint": str(tmp_path / "training" / "model.pt"), "device": "cuda:0", "amp": True}
    own |= {"dataset_dir": dataset_dir}
    prepare("evaluate", objective=task, output_dir=str(tmp_path / "evaluation"), **own).run()
    prepare("inference", output_dir=str(tmp_path / "inference"), ensemble="flips", **own).run()
    assert (tmp_path / "inference" / "report.html").is_file()
