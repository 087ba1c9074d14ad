"""The papers' experiments, and pretraining on HCP folders."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser

from dmri_monai.inference.spec import ModelSpec

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {
    "mueller2021_lesion": ("lesion", "pq", "LesionBCELoss"),
    "weninger2022_tissue": ("tissue", "plain-directions", "OneHotL1Loss"),
    "weninger2022_crossings": ("crossings", "plain-directions", "OneHotL1Loss"),
    "weninger2022_orientation": ("orientation", "plain-directions", "AxialLoss"),
}


def content(name):
    return json.loads((CONFIGS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", [*RECIPES, "hcp"])
def test_recipe_sets_only_keys_of_its_config(bundle, name):
    base = "pretrain" if name == "hcp" else "train"
    known = json.loads((bundle / "configs" / f"{base}.json").read_text())
    parser = ConfigParser(known)
    for key in content(name):
        assert key in (*ModelSpec.model_fields, "_desc_") or key in parser, key


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_the_papers_experiment(name):
    recipe, (task, architecture, loss) = content(name), RECIPES[name]
    assert recipe["architecture"] == architecture
    assert recipe["objective#loss"]["_target_"] == f"dmri_monai.losses.{loss}"
    assert task == "tissue" or f"tasks/{task}.json" in recipe["_desc_"]
    expected = {"mueller2021_lesion": (1, 0.005, None)}.get(name, (3, 0.001, 7))
    assert (recipe["batch_size"], recipe["learning_rate"], recipe.get("n_folds")) == expected


def test_networks_of_the_recipes_are_those_of_the_papers(prepare, dataset_dir, tmp_path):
    own = {"dataset_dir": dataset_dir, "output_dir": str(tmp_path), "n_folds": 5}
    for name in ("mueller2021_lesion", "weninger2022_tissue"):
        recipe = content(name)
        model = {key: recipe.get(key, "small") for key in ("architecture", "size")}
        options = recipe.get("network_options", {})
        overlay = str(CONFIGS / f"{name}.json")
        task = RECIPES[name][0]
        workflow = prepare("train", overlay, objective=task, **own, **model, network_options=options)
        network = workflow.parser.get_parsed_content("network_def")
        if name == "mueller2021_lesion":
            assert [layer.conv.kernel_size for layer in network.pq_layers] == [5]
            assert network.irreps_features == "5x0e+2x1o"
        else:
            assert (network.in_channels, network.head.in_channels) == (64, 16)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains_and_evaluates_on_the_phantom(prepare, dataset_dir, tmp_path, name):
    recipe = content(name)
    own = {key: recipe[key] for key in ("architecture", "size", "crop") if key in recipe}
    own |= {"network_options": recipe.get("network_options", {}), "max_epochs": 1}
    own |= {"n_folds": 5} if "fold" in recipe else {}
    task, overlay = RECIPES[name][0], str(CONFIGS / f"{name}.json")
    own |= {"dataset_dir": dataset_dir, "output_dir": str(tmp_path)}
    workflow = prepare("train", overlay, objective=task, **own)
    assert type(workflow.trainer.loss_function.loss).__name__ == RECIPES[name][2]
    workflow.run()
    (value,) = workflow.parser.get_parsed_content("validate#evaluator").state.metrics.values()
    assert np.isfinite(value)
    own = {key: own[key] for key in ("dataset_dir", "n_folds") if key in own}
    own |= {"checkpoint": str(tmp_path / "model.pt"), "fold": recipe.get("fold")}
    prepare("evaluate", objective=task, output_dir=str(tmp_path / "evaluation"), **own).run()
    assert (tmp_path / "evaluation" / "metrics_summary.csv").is_file()


def test_hcp_folders_pretrain(prepare, dataset_dir, tmp_path):
    for number, subject in enumerate(("100307", "100408", "101006"), start=1):
        folder = tmp_path / "hcp" / subject / "T1w" / "Diffusion"
        folder.mkdir(parents=True)
        source = Path(dataset_dir) / f"sub-0{number}" / "dwi" / f"sub-0{number}_dwi"
        nibabel.save(nibabel.load(f"{source}.nii.gz"), folder / "data.nii.gz")
        for kind in ("bval", "bvec"):
            shutil.copy(f"{source}.{kind}", folder / f"{kind}s")
    own = {"dataset_dir": str(tmp_path / "hcp"), "output_dir": str(tmp_path / "out"), "shells": [1000]}
    own |= {"crop_size": [16, 16, 16], "num_workers": 0, "max_epochs": 1, "split": {"train": 0.6, "val": 0.4}}
    prepare("pretrain", str(CONFIGS / "hcp.json"), **own).run()
    assert (tmp_path / "out" / "model.pt").is_file()
