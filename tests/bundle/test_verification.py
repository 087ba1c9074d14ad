"""MONAI's own checks of a bundle."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export, verify_metadata, verify_net_in_out

from dmri_monai.inference.model import Model
from dmri_monai.networks import EquivariantUNet

SCHEMA = Path(__file__).parent / "meta_schema.json"


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


def test_channels_of_the_metadata_are_those_of_the_transform(files):
    declared = json.loads(Path(files["meta_file"]).read_text())["network_data_format"]["inputs"]["image"]
    assert declared["num_channels"] == len(declared["channel_def"]) == Model().in_channels


def test_network_takes_and_gives_what_the_metadata_says(files, bundle):
    verify_net_in_out("network_def", device="cpu", bundle_root=str(bundle), **files)


def test_exported_network_gives_the_same_output(files, bundle, trained, tmp_path, prepare):
    shutil.copy(trained / "model.pt", tmp_path / "model.pt")
    options = {"architecture": "plain", "network_options": {"filters": 4}, "bundle_root": str(bundle)}
    ckpt_export(
        "network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(tmp_path / "model.pt"),
        **files,
        **options,
    )
    own = {"dataset_dir": str(tmp_path), "checkpoint": str(trained / "model.pt"), "data": []}
    network = prepare("inference", **own).parser.get_parsed_content("network").eval()
    image = torch.rand(1, 16, 16, 24, 16)
    exported = torch.jit.load(str(tmp_path / "model.ts"))
    torch.testing.assert_close(exported(image), network(image), rtol=1e-4, atol=1e-4)


def test_default_network_is_exported_for_any_size(files, tmp_path):
    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(files["config_file"])
    network = parser.get_parsed_content("network_def").eval()
    assert isinstance(network, EquivariantUNet)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    ckpt_export(
        "network_def", filepath=str(tmp_path / "model.ts"), ckpt_file=str(tmp_path / "model.pt"), **files
    )
    exported = torch.jit.load(str(tmp_path / "model.ts"))
    for size in [(24, 24, 24), (25, 26, 27)]:
        image = torch.rand(1, 16, *size)
        with torch.no_grad():
            torch.testing.assert_close(exported(image), network(image), rtol=1e-4, atol=1e-4)
