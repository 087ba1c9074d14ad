import json
import shutil

import nibabel
import numpy as np
import pytest
import torch

from dmri_monai.inference.outputs import WriteResults
from dmri_monai.tasks.tasks import TASKS

RUN_IDS = {"pretrain": "pretraining", "train": "training", "evaluate": "evaluating", "inference": "inferring"}


def weights(path):
    return torch.load(path, weights_only=True)


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


def test_networks_of_all_configs_agree(bundle):
    configs = {n: json.loads((bundle / "configs" / f"{n}.json").read_text()) for n in RUN_IDS}
    model = configs["train"]["model"]
    keys = [value.removeprefix("@") for key, value in model.items() if key != "_target_"]
    for key in ("model", *keys, "spacing_mm"):
        for name in ("pretrain", "evaluate", "inference"):
            assert configs[name][key] == configs["train"][key], (name, key)
    for key in ("task", "task_def", "network_def"):
        for name in ("evaluate", "inference"):
            assert configs[name][key] == configs["train"][key], (name, key)


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
    rows = (tmp_path / "evaluation" / "dice_summary.csv").read_text().splitlines()
    assert rows[0] == "method,WM,GM,CSF,mean"
    assert [row.split(",")[0].strip('"') for row in rows[1:]] == ["network", "network", "k-means on b0"]
    assert "k-means on b0, FA, MD" in capsys.readouterr().out


def test_evaluation_gives_all_methods_the_same_brain_mask(prepare, dataset_dir, trained, tmp_path):
    own = {"checkpoint": str(trained / "model.pt"), "masked": True}
    workflow = prepare("evaluate", dataset_dir=dataset_dir, output_dir=str(tmp_path), **own)
    for method in ("", "shuffled#", "kmeans#"):
        names = [
            type(t).__name__ for t in workflow.parser.get_parsed_content(f"{method}preprocessing").transforms
        ]
        assert "IgnoreOutsided" in names, method


def test_evaluation_compares_with_other_weights_on_the_same_subjects(
    prepare, dataset_dir, trained, pretrained, tmp_path
):
    own = {"checkpoint": str(trained / "model.pt")}
    same = prepare(
        "evaluate",
        dataset_dir=dataset_dir,
        output_dir=str(tmp_path),
        compare_with=str(trained / "last.pt"),
        **own,
    )
    evaluators = same.parser.get_parsed_content("evaluators")
    assert list(evaluators)[:2] == ["network", str(trained / "last.pt")]
    theirs = evaluators[str(trained / "last.pt")].network.state_dict()
    expected = weights(trained / "last.pt")["network"]
    torch.testing.assert_close(dict(theirs), dict(expected), rtol=0, atol=0)
    best = same.parser.get_parsed_content("network").state_dict()
    torch.testing.assert_close(dict(best), weights(trained / "model.pt"), rtol=0, atol=0)
    same.run()
    assert (tmp_path / "dice_summary.csv").read_text().splitlines()[2].startswith(str(trained / "last.pt"))


def test_report_shows_the_tables_it_is_given(prepare, dataset_dir, trained, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("method,mean\nours,0.81234\n")
    own = {"checkpoint": str(trained / "model.pt"), "tables": {"Compared": str(table)}}
    prepare("inference", dataset_dir=dataset_dir, output_dir=str(tmp_path / "out"), **own).run()
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


def test_scans_that_would_overwrite_each_other_are_refused(tmp_path):
    data = [{"image": str(tmp_path / folder / "scan.nii.gz")} for folder in "ab"]
    with pytest.raises(ValueError, match=r"2 scans would write the same scan_\*"):
        WriteResults(TASKS["tissue"], tmp_path, data)


def test_amp_on_the_cpu_trains_in_bf16(prepare, dataset_dir, tmp_path):
    workflow = prepare("train", dataset_dir=dataset_dir, output_dir=str(tmp_path), amp=True, max_epochs=1)
    seen = []
    network = workflow.parser.get_parsed_content("network")
    network.down_1[0][0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    workflow.run()
    assert set(seen) == {torch.bfloat16}
    assert all(v.dtype == torch.float32 for v in weights(tmp_path / "model.pt").values())
