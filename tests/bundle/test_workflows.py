import csv
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from dmri_monai.inference.bundle_results import WriteResults
from dmri_monai.inference.model import load_model
from dmri_monai.inference.spec import ModelSpec
from tests.small_models import save_model

RUN_IDS = {"pretrain": "pretraining", "train": "training", "evaluate": "evaluating", "inference": "inferring"}


def weights(path):
    return torch.load(path, weights_only=True)


def csv_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(params=RUN_IDS)
def workflow(request, prepare, dataset_dir, trained, tmp_path):
    """Every config of the bundle, initialised on the phantom."""
    own = {"checkpoint": str(trained / "model.pt")} if request.param in ("evaluate", "inference") else {}
    return prepare(request.param, dataset_dir=dataset_dir, output_dir=str(tmp_path), **own)


def test_no_property_of_a_monai_bundle_is_missing(workflow):
    assert workflow.check_properties() == []


def test_every_required_property_resolves(workflow):
    for name, value in workflow.properties.items():
        if value["required"]:
            assert getattr(workflow, name) is not None, name


@pytest.mark.parametrize("config", RUN_IDS)
def test_named_run_id_is_the_plain_run(bundle, config):
    content = json.loads((bundle / "configs" / f"{config}.json").read_text())
    assert content[RUN_IDS[config]] == "%run"
    assert content["initialize"]


# what a config may say of a model: which one it is, and an experiment with thinned tables
OWN = {"inference": {"task"}, "evaluate": {"subsample_directions"}}


@pytest.mark.parametrize("config", RUN_IDS)
def test_configs_leave_the_settings_of_a_model_and_their_defaults_to_its_description(bundle, config):
    content = json.loads((bundle / "configs" / f"{config}.json").read_text())
    assert set(content) & set(ModelSpec.model_fields) == OWN.get(config, set())


def test_all_configs_make_the_same_network_and_channels_of_a_model(prepare, dataset_dir, trained, tmp_path):
    own = {"dataset_dir": dataset_dir, "output_dir": str(tmp_path)}
    model = str(trained / "model.pt")
    parsers = {
        "train": prepare("train", pretrained=model, **own).parser,
        "evaluate": prepare("evaluate", checkpoint=model, **own).parser,
        "inference": prepare("inference", checkpoint=model, **own).parser,
    }
    ids = {"train": "validate#preprocessing", "inference": "preprocessing"}
    item = {"image": f"{dataset_dir}/sub-01/dwi/sub-01_dwi.nii.gz"}
    item["label"] = next(Path(dataset_dir).rglob("sub-01_dseg.nii.gz"))
    images = [parsers[name].get_parsed_content(key)(dict(item))["image"] for name, key in ids.items()]
    steps = [
        *parsers["evaluate"].get_parsed_content("load"),
        *parsers["evaluate"].get_parsed_content("encode"),
    ]
    images.append(Compose(steps)(dict(item))["image"])
    for image in images[1:]:
        torch.testing.assert_close(image.as_tensor(), images[0].as_tensor(), rtol=0, atol=0)
    ids = {"train": "network", "evaluate": "network_def", "inference": "network_def"}
    networks = [parsers[name].get_parsed_content(key) for name, key in ids.items()]
    assert len({str(network) for network in networks}) == 1
    body = {n: v for n, v in weights(trained / "model.pt").items() if not n.startswith("head.")}
    for network in networks:
        state = network.state_dict()
        torch.testing.assert_close({n: state[n] for n in body}, body, rtol=0, atol=0)


@pytest.mark.parametrize("config", ["inference", "evaluate"])
@pytest.mark.parametrize(("name", "value"), [("shells", [2000]), ("shell_tolerance", 0.3), ("size", "base")])
def test_setting_that_contradicts_the_checkpoint_is_refused_with_both(
    prepare, dataset_dir, trained, tmp_path, config, name, value
):
    own = {"checkpoint": str(trained / "model.pt"), "dataset_dir": dataset_dir, "output_dir": str(tmp_path)}
    with pytest.raises(RuntimeError) as error:
        prepare(config, **own, **{name: value})
    theirs = getattr(ModelSpec.load(trained / "model.json"), name)
    assert f"made with {name} = {theirs!r}, the configuration says" in str(error.value.__cause__)


@pytest.mark.parametrize("config", ["inference", "evaluate"])
def test_setting_that_agrees_with_the_checkpoint_is_taken(prepare, dataset_dir, trained, tmp_path, config):
    own = {"checkpoint": str(trained / "model.pt"), "dataset_dir": dataset_dir, "output_dir": str(tmp_path)}
    prepare(config, **own, shells=[1000], spacing_mm=[6, 6, 6])


def test_objective_of_another_task_than_the_checkpoints_says_which_file_to_add(
    prepare, dataset_dir, tmp_path
):
    own = {"checkpoint": str(save_model(tmp_path / "model.pt", "lesion")), "dataset_dir": dataset_dir}
    with pytest.raises(RuntimeError) as error:
        prepare("evaluate", **own, output_dir=str(tmp_path / "out"))
    assert "add configs/tasks/lesion.json" in str(error.value.__cause__)


def test_evaluation_of_what_follows_from_a_density_asks_for_that_of_the_density(
    prepare, dataset_dir, tmp_path
):
    with pytest.raises(RuntimeError) as error:
        prepare("evaluate", objective="crossings", dataset_dir=dataset_dir, output_dir=str(tmp_path)).run()
    assert "add configs/tasks/fod.json" in str(error.value.__cause__)


def test_inference_without_a_checkpoint_uses_the_released_model_of_the_task(prepare, dataset_dir, tmp_path):
    own = {"dataset_dir": f"{dataset_dir}/sub-01/dwi/sub-01_dwi.nii.gz", "output_dir": str(tmp_path)}
    found = prepare("inference", **own).parser.get_parsed_content("model")
    assert (found.task.name, found.weights.name) == ("tissue", "tissue.pt")
    prepare("inference", **own, task="crossings").run()
    sidecar = json.loads((tmp_path / "sub-01_npeaks.json").read_text())
    assert sidecar["ModelSHA256"] == load_model("crossings", "cpu").spec.sha256


def test_fine_tuning_starts_from_the_pretrained_body(prepare, dataset_dir, pretrained, tmp_path):
    workflow = prepare(
        "train", dataset_dir=dataset_dir, output_dir=str(tmp_path), pretrained=str(pretrained / "model.pt")
    )
    network = workflow.parser.get_parsed_content("network")
    expected = weights(pretrained / "model.pt")["bridge.0.0.weight"]
    torch.testing.assert_close(network.bridge[0][0].weight.data, expected, rtol=0, atol=0)


def test_training_leaves_best_and_last_checkpoint_and_a_picture(trained):
    assert weights(trained / "last.pt")["trainer"]["epoch"] == 2
    assert "head.weight" in weights(trained / "model.pt")
    assert (trained / "validation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("pretext", ["artifacts", "autoencoder", "masked", "none"])
def test_one_switch_selects_the_pretext(prepare, dataset_dir, tmp_path, pretext):
    workflow = prepare(
        "pretrain", dataset_dir=dataset_dir, output_dir=str(tmp_path), pretext=pretext, max_epochs=1
    )
    initial = {k: v.clone() for k, v in workflow.parser.get_parsed_content("network").state_dict().items()}
    workflow.run()
    moved = max(float((v - initial[k]).abs().max()) for k, v in weights(tmp_path / "model.pt").items())
    assert (moved == 0) == (pretext == "none")


def test_pretext_of_artifacts_corrupts_the_input_and_not_the_target(prepare, dataset_dir, tmp_path):
    workflow = prepare("pretrain", dataset_dir=dataset_dir, output_dir=str(tmp_path))
    loader, batch_of = (
        workflow.parser.get_parsed_content(i) for i in ("validate#dataloader", "prepare_batch")
    )
    batch = next(iter(loader))
    image, target = batch_of(batch, torch.device("cpu"))
    again, same_target = batch_of(batch, torch.device("cpu"))
    assert image.shape == target.shape == (1, 16, 20, 24, 20)
    assert (image - target).norm() > 0.01 * target.norm()
    torch.testing.assert_close(again, image, rtol=0, atol=0)
    torch.testing.assert_close(same_target, target, rtol=0, atol=0)


def test_evaluation_compares_with_both_controls(prepare, dataset_dir, trained, tmp_path, capsys):
    own = {"checkpoint": str(trained / "model.pt"), "mlflow": True}
    prepare("evaluate", dataset_dir=dataset_dir, output_dir=str(tmp_path / "evaluation"), **own).run()
    rows = csv_rows(tmp_path / "evaluation" / "dice_summary.csv")
    assert list(rows[0]) == ["method", "WM", "GM", "CSF", "mean"]
    methods = ["network", "network, shuffled b-vectors", "k-means on b0, FA, MD"]
    assert [row["method"] for row in rows] == methods
    printed = capsys.readouterr().out
    assert all(method in printed for method in methods)
    assert rows[0]["mean"] != rows[1]["mean"]  # the control: shuffling changes what the network sees
    detailed = csv_rows(tmp_path / "evaluation" / "metrics.csv")
    assert {"dice_WM", "hd95_WM"} <= set(detailed[0])


METHODS = ("evaluator", "compared", "shuffled", "kmeans")


def test_evaluation_gives_all_methods_the_same_brain_mask(prepare, dataset_dir, trained, tmp_path):
    model = str(trained / "model.pt")
    own = {"checkpoint": model, "compare_with": model, "masked": True}
    parser = prepare("evaluate", dataset_dir=dataset_dir, output_dir=str(tmp_path), **own).parser
    mask = nibabel.load(next(Path(dataset_dir).rglob("sub-04_desc-brain_mask.nii.gz")))
    inside = torch.as_tensor(np.asarray(mask.dataobj)) > 0
    for method in METHODS:
        (batch,) = parser.get_parsed_content(method).data_loader
        names = [
            type(t).__name__
            for t in parser.get_parsed_content(method).data_loader.dataset.transform.transforms
        ]
        assert "IgnoreOutsided" in names, method
        label = batch["label"][0, 0].as_tensor()
        assert (label[~inside] == 0).all(), method
        assert (label[inside] > 0).any(), method


def test_evaluation_compares_with_other_weights_on_the_same_subjects(prepare, dataset_dir, trained, tmp_path):
    own = {"checkpoint": str(trained / "model.pt"), "compare_with": str(trained / "last.pt")}
    same = prepare("evaluate", dataset_dir=dataset_dir, output_dir=str(tmp_path), **own)
    compared = same.parser.get_parsed_content("compared")
    expected = weights(trained / "last.pt")["network"]
    torch.testing.assert_close(dict(compared.network.state_dict()), dict(expected), rtol=0, atol=0)
    best = same.parser.get_parsed_content("evaluator").network.state_dict()
    torch.testing.assert_close(dict(best), weights(trained / "model.pt"), rtol=0, atol=0)
    same.run()
    rows = csv_rows(tmp_path / "dice_summary.csv")
    assert [row["method"] for row in rows][:2] == ["network", "compared network"]


def test_evaluation_leaves_out_what_does_not_apply(prepare, dataset_dir, tmp_path):
    """No second checkpoint: no comparison; k-means finds tissue alone."""
    checkpoint = str(save_model(tmp_path / "model.pt", "crossings", architecture="plain"))
    own = {"checkpoint": checkpoint, "dataset_dir": dataset_dir, "output_dir": str(tmp_path / "out")}
    workflow = prepare("evaluate", objective="crossings", **own)
    assert [workflow.parser.get_parsed_content(name) is None for name in METHODS] == [
        False,
        True,
        False,
        True,
    ]
    workflow.run()
    methods = [row["method"] for row in csv_rows(tmp_path / "out" / "macro_f1_summary.csv")]
    assert methods == ["network", "network, shuffled b-vectors"]


def test_report_shows_the_tables_it_is_given(prepare, dataset_dir, trained, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("method,mean\nours,0.81234\n")
    own = {"checkpoint": str(trained / "model.pt"), "tables": {"Compared": str(table)}}
    scan = f"{dataset_dir}/sub-01/dwi/sub-01_dwi.nii.gz"
    prepare("inference", dataset_dir=scan, output_dir=str(tmp_path / "out"), **own).run()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Compared" in page
    assert "0.812" in page


def test_inference_writes_label_maps_in_the_space_of_the_scan_and_a_report(
    prepare, dataset_dir, trained, tmp_path
):
    own = {"checkpoint": str(trained / "model.pt")}
    prepare("inference", dataset_dir=dataset_dir, output_dir=str(tmp_path), **own).run()
    assert len(list(tmp_path.glob("*_dseg.nii.gz"))) == 5
    scan = nibabel.load(f"{dataset_dir}/sub-01/dwi/sub-01_dwi.nii.gz")
    written = nibabel.load(tmp_path / "sub-01_dseg.nii.gz")
    np.testing.assert_array_equal(written.affine, scan.affine)
    assert written.shape == scan.shape[:3]
    assert set(np.unique(written.dataobj)) <= {0, 1, 2, 3}
    assert "Dice WM" in (tmp_path / "report.html").read_text()


def test_scans_of_one_name_get_their_subject_in_front(prepare, dataset_dir, trained, tmp_path):
    for number, subject in enumerate(("100307", "100408"), start=1):
        folder = tmp_path / "hcp" / subject / "T1w" / "Diffusion"
        folder.mkdir(parents=True)
        source = f"{dataset_dir}/sub-0{number}/dwi/sub-0{number}_dwi"
        for theirs, name in (("nii.gz", "data.nii.gz"), ("bval", "bvals"), ("bvec", "bvecs")):
            shutil.copy(f"{source}.{theirs}", folder / name)
    own = {"checkpoint": str(trained / "model.pt"), "output_dir": str(tmp_path / "out")}
    prepare("inference", dataset_dir=str(tmp_path / "hcp"), **own).run()
    found = {path.name for path in (tmp_path / "out").glob("*_dseg.nii.gz")}
    assert found == {"100307_data_dseg.nii.gz", "100408_data_dseg.nii.gz"}


def test_scans_that_would_overwrite_each_other_are_refused(checkpoint, tmp_path):
    data = [{"image": str(tmp_path / folder / "scan.nii.gz")} for folder in "ab"]
    with pytest.raises(ValueError, match=r"2 scans would write the same scan_\*"):
        WriteResults(load_model(checkpoint, "cpu"), tmp_path, data)


def test_amp_on_the_cpu_trains_in_bf16(prepare, dataset_dir, tmp_path):
    workflow = prepare("train", dataset_dir=dataset_dir, output_dir=str(tmp_path), amp=True, max_epochs=1)
    seen = []
    network = workflow.parser.get_parsed_content("network")
    network.down_1[0][0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    workflow.run()
    assert set(seen) == {torch.bfloat16}
    assert all(v.dtype == torch.float32 for v in weights(tmp_path / "model.pt").values())


@pytest.mark.parametrize("objective", [None, "crossings"], ids=["tissue", "crossings"])
def test_training_that_finds_one_class_alone_says_so(prepare, dataset_dir, tmp_path, caplog, objective):
    settings = {"output_dir": str(tmp_path), "learning_rate": 0.0, "objective": objective}
    workflow = prepare("train", dataset_dir=dataset_dir, **settings)
    for parameter in workflow.parser.get_parsed_content("network").parameters():
        parameter.data.zero_()
    workflow.run()
    assert (
        caplog.text.count("every voxel of all validation scans is predicted as class 0, the labels hold 0, 1")
        == 1
    )
