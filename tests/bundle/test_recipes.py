"""The papers' experiments, and pretraining on HCP folders."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = {
    "mueller2021_lesion": ("lesion", "pq"),
    "weninger2022_tissue": ("tissue", "plain-directions"),
    "weninger2022_crossings": ("crossings", "plain-directions"),
    "weninger2022_orientation": ("orientation", "plain-directions"),
}


def content(name):
    return json.loads((CONFIGS / f"{name}.json").read_text())


@pytest.mark.parametrize("name", [*RECIPES, "hcp"])
def test_recipe_sets_only_keys_of_its_config(bundle, name):
    base = "pretrain" if name == "hcp" else "train"
    known = json.loads((bundle / "configs" / f"{base}.json").read_text())
    assert set(content(name)) <= {*known, "_desc_"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_the_papers_experiment(name):
    recipe, (task, architecture) = content(name), RECIPES[name]
    assert (recipe["task"], recipe["architecture"]) == (task, architecture)
    expected = {"mueller2021_lesion": (1, 0.005, None)}.get(name, (3, 0.001, 7))
    assert (recipe["batch_size"], recipe["learning_rate"], recipe.get("n_folds")) == expected


def test_networks_of_the_recipes_are_those_of_the_papers(prepare, dataset_dir, tmp_path):
    own = {"dataset_dir": dataset_dir, "output_dir": str(tmp_path), "n_folds": 5}
    for name in ("mueller2021_lesion", "weninger2022_tissue"):
        recipe = content(name)
        model = {key: recipe.get(key, "small") for key in ("architecture", "size")}
        options = recipe.get("network_options", {})
        overlay = str(CONFIGS / f"{name}.json")
        workflow = prepare("train", overlay, **own, **model, network_options=options)
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
    workflow = prepare(
        "train", str(CONFIGS / f"{name}.json"), dataset_dir=dataset_dir, output_dir=str(tmp_path), **own
    )
    workflow.run()
    (value,) = workflow.parser.get_parsed_content("validate#evaluator").state.metrics.values()
    assert np.isfinite(value)
    own |= {"dataset_dir": dataset_dir, "checkpoint": str(tmp_path / "model.pt")}
    prepare("evaluate", str(CONFIGS / f"{name}.json"), output_dir=str(tmp_path / "evaluation"), **own).run()
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
