"""MONAI's own checks of a bundle."""

import json
import re
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, verify_metadata, verify_net_in_out

import dmri_monai
from dmri_monai.inference.model import load_model
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.integrations.bundle_metadata import bundle_metadata
from dmri_monai.networks import InvariantUNet

SCHEMA = Path(__file__).parent / "meta_schema.json"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(bundle):
    configs = bundle / "configs"
    return {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.json")}


def test_metadata_is_valid(files):
    verify_metadata(meta_file=files["meta_file"], filepath=str(SCHEMA))


def test_incomplete_metadata_is_not_valid(files, tmp_path):
    content = json.loads(Path(files["meta_file"]).read_text())
    del content["network_data_format"]["inputs"]["image"]["num_channels"]
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="num_channels"):
        verify_metadata(meta_file=str(tmp_path / "metadata.json"), filepath=str(SCHEMA))


def test_metadata_are_those_of_the_released_model(files):
    """After another release: write what `bundle_metadata` gives."""
    declared = json.loads(Path(files["meta_file"]).read_text(encoding="utf-8"))
    assert declared == bundle_metadata(load_model("tissue", "cpu").spec)


def locked(name: str) -> dict[str, str]:
    """Package -> version of a file of locked requirements."""
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE))


def test_versions_of_the_metadata_are_those_that_are_tested(files):
    """After a change of requirements.lock: write its versions."""
    declared = json.loads(Path(files["meta_file"]).read_text(encoding="utf-8"))
    found = dict(declared["required_packages_version"])
    assert found.pop("dmri-monai") == declared["version"] == dmri_monai.__version__
    named = {"torch": "pytorch", "monai": "monai", "numpy": "numpy"}
    found |= {name: declared[f"{key}_version"] for name, key in named.items()}
    versions = locked("requirements.lock")
    assert found == {name: versions[name] for name in found}
    assert declared["supported_apps"] == {"MONAILabel": locked("requirements-label.lock")["monailabel"]}


def test_metadata_of_another_model_differ(files):
    declared = json.loads(Path(files["meta_file"]).read_text(encoding="utf-8"))
    assert declared != bundle_metadata(load_model("crossings", "cpu").spec)


def test_released_network_takes_and_gives_what_the_metadata_says(files):
    verify_net_in_out("network_def", device="cpu", **files)
    parser = ConfigParser()
    parser.read_config(files["config_file"])
    network = parser.get_parsed_content("network_def")
    released = torch.load(load_model("tissue", "cpu").weights, weights_only=True)
    torch.testing.assert_close(dict(network.state_dict()), released, rtol=0, atol=0)


@pytest.mark.parametrize(("part", "name"), [("inputs", "image"), ("outputs", "pred")])
def test_metadata_with_another_number_of_channels_do_not_pass(files, tmp_path, part, name):
    """The control: the check above can fail."""
    content = json.loads(Path(files["meta_file"]).read_text(encoding="utf-8"))
    content["network_data_format"][part][name]["num_channels"] = 16
    (tmp_path / "metadata.json").write_text(json.dumps(content))
    with pytest.raises((ValueError, RuntimeError)):
        verify_net_in_out(
            "network_def",
            device="cpu",
            config_file=files["config_file"],
            meta_file=str(tmp_path / "metadata.json"),
        )


def test_exported_network_of_a_checkpoint_gives_the_same_output(files, trained, tmp_path):
    checkpoint = str(trained / "model.pt")
    out = tmp_path / "model.ts"
    ckpt_export("network_def", filepath=str(out), ckpt_file=checkpoint, checkpoint=checkpoint, **files)
    network = load_model(checkpoint, "cpu").network
    image = torch.rand(1, ModelSpec.load(trained / "model.json").in_channels, 16, 24, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(str(out))(image), network(image), rtol=1e-4, atol=1e-4)


def test_released_network_is_exported_for_any_size(files, tmp_path):
    released = load_model("tissue", "cpu")
    assert isinstance(released.network, InvariantUNet)
    out = tmp_path / "model.ts"
    ckpt_export("network_def", filepath=str(out), ckpt_file=str(released.weights), **files)
    exported = torch.jit.load(str(out))
    for size in [(24, 24, 24), (25, 26, 27)]:
        image = torch.rand(1, released.spec.in_channels, *size)
        with torch.no_grad():
            torch.testing.assert_close(exported(image), released.network(image), rtol=1e-4, atol=1e-4)
