"""The files a user merges over the bundle's configs."""

import json
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser

from dmri_monai.inference.spec import ModelSpec

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = str(CONFIGS / "tiny.json")
DEFAULTS = {
    "architecture": ModelSpec().architecture,
    "network_options": {},
}  # instead of a test's own small network


def test_default_network_pretrains_fine_tunes_and_infers(prepare, dataset_dir, tmp_path):
    common = {"dataset_dir": dataset_dir, "max_epochs": 1}
    common |= DEFAULTS
    prepare("pretrain", TINY, **common, output_dir=str(tmp_path / "pretraining")).run()
    second = {
        "output_dir": str(tmp_path / "training"),
        "pretrained": str(tmp_path / "pretraining" / "model.pt"),
    }
    prepare("train", TINY, **common, **second).run()
    own = {"dataset_dir": dataset_dir, "checkpoint": str(tmp_path / "training" / "model.pt")}
    prepare("inference", output_dir=str(tmp_path / "inference"), **own).run()
    assert ModelSpec.load(tmp_path / "training" / "model.json").architecture == "any"
    assert len(list((tmp_path / "inference").glob("*_dseg.nii.gz"))) == 5


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "args").rglob("*.json")), ids=lambda p: str(p.relative_to(CONFIGS / "args"))
)
def test_files_named_by_an_args_file_exist_and_know_its_keys(path):
    args = json.loads(path.read_text())
    files = [CONFIGS.parent / name for name in args.pop("config_file")]
    known = ConfigParser.load_config_files([str(f) for f in files])
    assert set(args) <= {*known, *ModelSpec.model_fields}


@pytest.mark.parametrize("name", ["phantom", "bids"])
def test_overlay_only_sets_keys_of_the_training_config(bundle, name):
    overlay = json.loads((CONFIGS / f"{name}.json").read_text())
    known = json.loads((bundle / "configs" / "train.json").read_text())
    assert set(overlay) <= {*known, *ModelSpec.model_fields}


def test_half_of_the_lesion_crops_are_centred_on_lesions_and_all_in_the_brain(prepare, dataset_dir, tmp_path):
    own = {
        "dataset_dir": dataset_dir,
        "output_dir": str(tmp_path),
        "crop_size": [1] * 3,
        "crops_per_scan": 100,
    }
    workflow = prepare("train", str(CONFIGS / "lesion_crops.json"), objective="lesion", **own)
    scans = workflow.parser.get_parsed_content("train#dataset")
    labels = np.array([[float(crop["label"]) for crop in scans[i]] for i in range(len(scans))])
    assert labels.min() == 0  # -1 is outside the mask
    assert np.any(np.abs(labels.mean(axis=1) - 0.5) < 0.15)  # 0 for a head without lesions
    assert np.all(labels.mean(axis=1) < 0.7)
