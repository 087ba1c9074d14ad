"""The released model of fibres goes on learning from scans without labels, through the bundle."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from dmri_monai import load_model
from dmri_monai.inference.spec import ModelSpec

ROOT = Path(__file__).parents[2]
OVERLAY = ROOT / "configs" / "fod_unsupervised.json"
CONTENT = json.loads(OVERLAY.read_text(encoding="utf-8"))
# what the tests' own settings would otherwise put in place of the overlay's
OWN = {key: CONTENT[key] for key in ("architecture", "size", "network_options", "spacing_mm")}
OWN |= {"pretrained": str(ROOT / "bundle" / "models" / "fod.pt"), "crop_size": [8, 8, 8], "max_epochs": 1}


@pytest.fixture(scope="module")
def unlabelled(dataset_dir, tmp_path_factory):
    """Three heads as a BIDS folder in which no label and no mask lies."""
    out = tmp_path_factory.mktemp("unlabelled")
    for name in ("sub-01", "sub-02", "sub-03"):
        shutil.copytree(Path(dataset_dir) / name, out / name)
    return out


def losses(workflow):
    return workflow.parser.get_parsed_content("validate#evaluator").state.metrics


def test_overlay_sets_only_keys_of_the_training_config():
    parser = ConfigParser(
        json.loads((ROOT / "bundle" / "configs" / "train.json").read_text(encoding="utf-8"))
    )
    for key in CONTENT:
        assert key in (*ModelSpec.model_fields, "_desc_") or key in parser, key


def test_its_model_is_the_released_one():
    released = ModelSpec.load(ROOT / "bundle" / "models" / "fod.json")
    own = ModelSpec(task="fod", **{key: value for key, value in OWN.items() if key in ModelSpec.model_fields})
    for name in ("task", *ModelSpec.meaning(), "architecture", "size", "network_options", "spacing_mm"):
        assert getattr(own, name) == getattr(released, name), name


SPLIT = {"split": {"train": 0.67, "val": 0.33}, "crops_per_scan": 4}


@pytest.fixture(scope="module")
def still(prepare, unlabelled, tmp_path_factory):
    """A training of one epoch that changes nothing."""
    out = tmp_path_factory.mktemp("still")
    own = {"dataset_dir": str(unlabelled), **OWN, **SPLIT, "output_dir": str(out), "learning_rate": 0.0}
    workflow = prepare("train", str(OVERLAY), **own)
    workflow.run()
    return workflow, out


def test_training_without_labels_starts_from_the_released_weights(still):
    workflow, out = still
    start = torch.load(out / "model.pt", weights_only=True)
    for name, value in torch.load(OWN["pretrained"], weights_only=True).items():
        torch.testing.assert_close(start[name], value, rtol=0, atol=0)
    assert list(losses(workflow)) == ["val_deconvolution_loss"]
    assert 0 < losses(workflow)["val_deconvolution_loss"] < 100


def test_training_without_labels_may_begin_from_nothing(prepare, unlabelled, tmp_path):
    own = {"dataset_dir": str(unlabelled), "output_dir": str(tmp_path), **OWN, "pretrained": "none"}
    network = prepare("train", str(OVERLAY), **own).parser.get_parsed_content("network")
    released = torch.load(OWN["pretrained"], weights_only=True)
    name = "head.voxel.weights.weight"
    assert not torch.equal(network.state_dict()[name].cpu(), released[name])


@pytest.mark.slow
def test_training_without_labels_improves_and_is_resumed(prepare, unlabelled, still, tmp_path):
    own = {"dataset_dir": str(unlabelled), **OWN, **SPLIT}
    moved = prepare("train", str(OVERLAY), **{**own, "max_epochs": 4}, output_dir=str(tmp_path / "whole"))
    moved.run()
    (first,), (last,) = losses(still[0]).values(), losses(moved).values()
    assert 0 < last < first
    model = load_model(tmp_path / "whole" / "model.pt")
    assert model.spec.task == "fod"
    cut = {**own, "output_dir": str(tmp_path / "cut"), "max_epochs": 4}
    interrupted = prepare("train", str(OVERLAY), **cut)
    _stop_after(interrupted, 2)
    prepare("train", str(OVERLAY), **cut, resume=True).run()
    ends = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "cut")]
    for name, value in ends[0]["network"].items():
        torch.testing.assert_close(ends[1]["network"][name], value, rtol=0, atol=0)


def _stop_after(workflow, epochs):
    from ignite.engine import Events

    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=epochs), lambda engine: engine.terminate())
    workflow.run()


def test_voxels_outside_the_brain_mask_do_not_count(prepare, dataset_dir, tmp_path):
    own = {"dataset_dir": dataset_dir, "output_dir": str(tmp_path), **OWN, "masked": True}
    workflow = prepare("train", str(OVERLAY), **own)
    item = workflow.parser.get_parsed_content("validate#dataset")[0]
    assert set(item) >= {"image", "label"}
    inside = torch.as_tensor(item["label"]).isfinite().all(0)
    assert 0.05 < float(inside.float().mean()) < 0.95
    np.testing.assert_array_equal(item["label"][:, inside].numpy(), item["image"][:, inside].numpy())


def test_a_model_without_deconvolution_is_refused(prepare, unlabelled, tmp_path):
    own = {"dataset_dir": str(unlabelled), "output_dir": str(tmp_path), **OWN, "network_options": {}}
    with pytest.raises(Exception) as error:  # noqa: PT011  MONAI wraps what its expressions raise
        prepare("train", str(OVERLAY), **{**own, "pretrained": None}).run()
    causes = [error.value]
    while causes[-1].__cause__ or causes[-1].__context__:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    assert any("{'deconvolution': true}" in str(cause) for cause in causes)
