"""A bundle of one model that stands alone: complete, true, and run from a folder of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out

import dmri_monai
from dmri_monai.inference.model import load_model
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.integrations.bundle_export import export_bundle
from dmri_monai.integrations.bundle_metadata import bundle_metadata, input_channels
from dmri_monai.phantom import write_dataset
from dmri_monai.scan import Scan
from tests.small_models import save_model

SCHEMA = Path(__file__).parents[1] / "bundle" / "meta_schema.json"
FILES = {
    "LICENSE",
    "configs/evaluate.json",
    "configs/inference.json",
    "configs/logging.conf",
    "configs/metadata.json",
    "configs/train.json",
    "docs/README.md",
    "models/model.json",
    "models/model.pt",
}
SHORT = {"crop_size": [16, 16, 16], "max_epochs": 1, "train_subjects": 1, "batch_size": 1}


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("phantom") / "data"
    write_dataset(out, subjects=5, seed=0, shape=(20, 24, 20), spacing_mm=(6.0, 6.0, 6.0), progress=False)
    return str(out)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """An untrained tissue model of few weights."""
    path = tmp_path_factory.mktemp("plain") / "model.pt"
    return save_model(
        path, architecture="plain", network_options={"filters": 4}, subsample_directions=(16, 32)
    )


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory) -> Path:
    """The bundle of the small model, to be read alone."""
    return export_bundle(checkpoint, tmp_path_factory.mktemp("exported") / "out")


def config(folder, name):
    return json.loads((folder / "configs" / f"{name}.json").read_text(encoding="utf-8"))


def workflow(folder, name, **settings):
    """Initialised workflow of a config of an exported bundle."""
    made = ConfigWorkflow(
        config_file=str(folder / "configs" / f"{name}.json"),
        logging_file=False,
        workflow_type="train" if name == "train" else "infer",
        bundle_root=str(folder),
        device="cpu",
        **settings,
    )
    made.initialize()
    return made


def test_bundle_is_complete(exported):
    out = exported
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} == FILES
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    readme = (out / "docs" / "README.md").read_text(encoding="utf-8")
    assert "b = 1000 s/mm²" in readme
    assert "*_dseg.nii.gz" in readme


def test_page_of_a_bundle_for_any_protocol_names_no_shell(tmp_path):
    out = export_bundle(save_model(tmp_path / "model.pt", architecture="any"), tmp_path / "out")
    assert "for raw scans\nwith any shells." in (out / "docs" / "README.md").read_text(encoding="utf-8")
    assert "whatever its shells" in config(out, "metadata")["description"]


OWN = {
    "lesion": {"name": "lesion"},
    "plain-directions": {"architecture": "plain-directions", "n_directions": 12},
    "any": {"architecture": "any", "slots": 2},
    "fod": {"name": "fod", "architecture": "any"},
    "fractions": {"name": "fractions"},
}
RELEASED = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("tissue", "tissue-shells", "orientation", "crossings")
]


@pytest.mark.parametrize("name", [*RELEASED, *OWN])
def test_metadata_are_true_and_pass_monais_checks(tmp_path, name):
    model = save_model(tmp_path / "model.pt", **OWN[name]) if name in OWN else name
    out = export_bundle(model, tmp_path / "out")
    files = {"meta_file": str(out / "configs" / "metadata.json")}
    verify_metadata(**files, filepath=str(SCHEMA))
    settings = {"bundle_root": str(out), "config_file": str(out / "configs" / "inference.json")}
    verify_net_in_out("network_def", device="cpu", **files, **settings)
    assert config(out, "metadata") == bundle_metadata(load_model(model, "cpu").spec)


VOXELS = "simulated voxels of dmri_monai.phantom"
HEADS = "simulated heads of dmri_monai.phantom, their fibres the reference peaks of TractSeg"
SOURCES = {
    "tissue": HEADS,
    "fractions": HEADS,
    "tissue-voxelwise": VOXELS,
    "fractions-voxelwise": VOXELS,
    "fod": f"{VOXELS}, then {HEADS}",
    "orientation": f"that of task fod, which the network has learned: {VOXELS}, then {HEADS}",
    "crossings": f"that of task fod, which the network has learned: {VOXELS}, then {HEADS}",
    "tissue-shells": "18 scans, listed in models/model.json with the hashes of their gradient tables",
}


@pytest.mark.parametrize(("name", "source"), SOURCES.items(), ids=SOURCES.keys())
def test_metadata_say_on_what_a_released_network_learned(name, source):
    spec = load_model(name, "cpu").spec
    assert bundle_metadata(spec)["data_source"] == source
    assert (
        bundle_metadata(spec.untrained())["data_source"] == "not recorded"
    )  # other weights learned elsewhere


def test_metadata_of_a_task_that_follows_say_what_is_written_and_from_what():
    found = bundle_metadata(load_model("crossings", "cpu").spec)
    assert found["pred_classes"].startswith("0 background, 1 1 fibre, 2 2 fibres, 3 3 fibres; follows from")
    assert found["label_classes"].startswith("fibre orientation density")
    assert found["network_data_format"]["outputs"]["pred"]["num_channels"] == 45
    assert found["task"] == "Number of fibres"
    assert bundle_metadata(load_model("fod", "cpu").spec)["pred_classes"] == "as label_classes"


@pytest.mark.parametrize(("name", "rescaled"), [("fod", True), ("orientation", True), ("tissue", False)])
def test_metadata_say_whether_shells_are_rescaled(name, rescaled):
    image = bundle_metadata(load_model(name, "cpu").spec)["network_data_format"]["inputs"]["image"]
    assert ("rescaled to the nominal response" in str(image)) is rescaled


def test_metadata_name_what_the_channels_hold():
    """A signal of the angle to the polar axis alone, in two of three shells: only m = 0, nothing of the absent one."""
    spec = load_model("tissue-shells", "cpu").spec
    names = input_channels(spec)
    generator = torch.Generator().manual_seed(0)
    bvecs = torch.nn.functional.normalize(
        torch.randn(120, 3, generator=generator, dtype=torch.float64), dim=1
    )
    bvals = torch.cat([torch.zeros(2), torch.full((60,), 1000.0), torch.full((60,), 3000.0)]).double()
    bvecs = torch.cat([torch.zeros(2, 3).double(), bvecs])
    signal = 100 * torch.exp(-bvals * (0.3e-3 + 1.2e-3 * bvecs[:, 1].square()))
    image = signal.float()[:, None, None, None].expand(-1, 8, 8, 8).clone()
    affine = torch.diag(torch.tensor([2.5, 2.5, 2.5, 1.0]))
    encoding = load_model("tissue-shells", "cpu").encode(Scan.of_arrays(image, bvals, bvecs, affine))
    channels = encoding["image"].as_tensor()[:, 4, 4, 4]
    assert len(names) == len(channels) == 49
    found = dict(zip(names, channels.tolist(), strict=True))
    absent = [name for name in names if "b=2000" in name]
    assert len(absent) == 16
    assert all(found[name] == 0 for name in absent)
    assert found["b0 / median b0"] == pytest.approx(1, abs=1e-3)
    for shell in ("b=1000", "b=3000"):
        assert found[f"presence of {shell}"] == 1
        assert found[f"S/S0 {shell} l=0"] > 0.1
        turned = [found[n] for n in names if shell in n and " m=" in n and " m=0" not in n]
        assert len(turned) == 12
        assert abs(found[f"S/S0 {shell} l=2 m=0"]) > 10 * max(map(abs, turned))


def test_metadata_name_what_the_channels_of_any_protocol_hold(tmp_path):
    model = load_model(save_model(tmp_path / "model.pt", architecture="any", slots=3), "cpu")
    generator = torch.Generator().manual_seed(0)
    bvecs = torch.nn.functional.normalize(
        torch.randn(182, 3, generator=generator, dtype=torch.float64), dim=1
    )
    bvals = torch.cat([torch.zeros(2), torch.full((90,), 700.0), torch.full((90,), 2400.0)]).double()
    bvecs[:2] = 0
    signal = 100 * torch.exp(-bvals * (0.3e-3 + 1.2e-3 * bvecs[:, 1].square()))
    image = signal.float()[:, None, None, None].expand(-1, 8, 8, 8).clone()
    scan = Scan.of_arrays(image, bvals, bvecs, torch.diag(torch.tensor([6.0, 6.0, 6.0, 1.0])))
    channels, names = model.encode(scan)["image"].as_tensor()[:, 4, 4, 4], input_channels(model.spec)
    assert len(names) == len(channels) == model.spec.in_channels == 94
    found = dict(zip(names, channels.tolist(), strict=True))
    assert [found[f"b of shell {i} in ms/µm²"] for i in (1, 2, 3)] == pytest.approx([0.7, 2.4, 0.0])
    assert [found[f"presence of shell {i}"] for i in (1, 2, 3)] == [1, 1, 0]
    assert found["log number of measurements of shell 2"] == pytest.approx(np.log(90))
    assert found["S/S0 shell 1 l=0"] > found["S/S0 shell 2 l=0"] > 0.1
    turned = [found[n] for n in names if "shell 2" in n and " m=" in n and " m=0" not in n]
    assert abs(found["S/S0 shell 2 l=2 m=0"]) > 10 * max(map(abs, turned))
    assert [found[n] for n in names if "shell 3" in n] == [0.0] * 31


@pytest.fixture
def elsewhere(tmp_path):
    """Environment in which the package lies where no bundle comes with it."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "dmri_monai").symlink_to(Path(dmri_monai.__file__).parent)
    return {**os.environ, "PYTHONPATH": str(site)}


@pytest.mark.slow
def test_bundle_runs_from_its_own_folder_without_the_packages(scan, elsewhere, tmp_path):
    out = export_bundle("tissue", tmp_path / "a folder" / "out")
    shutil.move(out, tmp_path / "moved")
    check = "from dmri_monai.inference.released import bundle_folder; bundle_folder()"
    lost = subprocess.run(
        [sys.executable, "-c", check], env=elsewhere, cwd=tmp_path, capture_output=True, text=True
    )
    assert "no bundle in" in lost.stderr  # the control: nothing below can come from there
    command = [sys.executable, "-m", "monai.bundle", "run", "inferring"]
    command += ["--config_file", "configs/inference.json", "--dataset_dir", str(scan), "--device", "cpu"]
    command += ["--output_dir", str(tmp_path / "results")]
    done = subprocess.run(command, env=elsewhere, cwd=tmp_path / "moved", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.asarray(nibabel.load(tmp_path / "results" / "sub-01_dseg.nii.gz").dataobj)
    expected = load_model("tissue", "cpu").predict(Scan.read(scan)).values
    np.testing.assert_array_equal(found, expected.numpy())
    assert len(np.unique(found)) > 1


def test_exported_bundle_evaluates_and_trains_on_from_its_weights(plain, dataset_dir, tmp_path):
    out = export_bundle(plain, tmp_path / "out")
    own = {"dataset_dir": dataset_dir, "mlflow": False}
    evaluation = workflow(out, "evaluate", output_dir=str(tmp_path / "evaluation"), **own)
    evaluation.run()
    assert (tmp_path / "evaluation" / "dice_summary.csv").is_file()
    training = workflow(out, "train", output_dir=str(tmp_path / "training"), **own, **SHORT)
    body = {n: v for n, v in torch.load(plain, weights_only=True).items() if not n.startswith("head.")}
    network = training.parser.get_parsed_content("network").state_dict()
    torch.testing.assert_close({n: network[n] for n in body}, body, rtol=0, atol=0)
    training.run()
    before, after = (ModelSpec.load(p / "model.json") for p in (out / "models", tmp_path / "training"))
    assert after.untrained() == before.untrained()
    assert after.sha256 != before.sha256


def test_training_on_other_data_does_not_claim_the_old_ones(dataset_dir, tmp_path):
    known = {"trained_on": {"snr": [10.0, 20.0]}, "scans": {"sub-01": "abc"}}
    model = save_model(tmp_path / "model.pt", architecture="plain", network_options={"filters": 4}, **known)
    out = export_bundle(model, tmp_path / "out")
    own = {"dataset_dir": dataset_dir, "mlflow": False, "output_dir": str(tmp_path / "training")}
    spec = workflow(out, "train", **own, **SHORT).parser.get_parsed_content("model")
    assert spec == ModelSpec.load(model.with_suffix(".json")).untrained()
    assert spec.scans == {}
    assert spec.trained_on.snr is None
    assert ModelSpec.load(out / "models" / "model.json").scans == {"sub-01": "abc"}


@pytest.mark.parametrize("name", ["inference", "evaluate", "train"])
def test_no_value_of_the_description_stands_in_a_config(exported, name):
    """What stands there is evaluated: a config names the description instead."""
    content = config(exported, name)
    assert set(content) & set(ModelSpec.model_fields) <= {"subsample_directions"}
    parser = ConfigParser(content)
    assert "/models/model." in parser["model"]


@pytest.mark.parametrize(("architecture", "task"), [("pq", "tissue"), ("equivariant", None)])
def test_model_that_a_bundle_cannot_describe_is_refused(tmp_path, architecture, task):
    model = save_model(tmp_path / "model.pt", task, architecture=architecture)
    with pytest.raises(ValueError, match="with fixed channels, not 'pq'|has no task yet"):
        export_bundle(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_that_is_not_empty_is_left_alone(checkpoint, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        export_bundle(checkpoint, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_full_disk_leaves_no_bundle(checkpoint, tmp_path, full_disk):
    with full_disk, pytest.raises(OSError, match="out"):
        export_bundle(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
