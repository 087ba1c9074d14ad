"""Exported networks: the same output at any size, and no file where the disk is full."""

import json

import pytest
import torch

from dmri_monai.inference.model import Model, build_network
from dmri_monai.integrations.torchscript import export_model
from dmri_monai.training.checkpoint import load_weights
from tests.small_models import save_model


@pytest.mark.parametrize("architecture", ["equivariant", "plain", "plain-directions"])
def test_exported_network_gives_the_same_output_at_any_size(tmp_path, architecture):
    model = Model(architecture=architecture, size="tiny", n_directions=12)
    checkpoint = save_model(tmp_path / "model.pt", model=model)
    network = load_weights(build_network(model, "4x0e"), checkpoint).eval()
    exported = torch.jit.load(export_model(checkpoint, tmp_path / "model.ts"))
    for size in [(16, 16, 16), (24, 16, 32)]:
        image = torch.rand(1, model.in_channels, *size)
        with torch.no_grad():
            torch.testing.assert_close(exported(image), network(image), rtol=1e-4, atol=1e-4)


def test_exported_file_says_what_it_needs(checkpoint, tmp_path):
    files = {"metadata.json": "", "model.json": ""}
    torch.jit.load(export_model(checkpoint, tmp_path / "model.ts"), _extra_files=files)
    assert json.loads(files["model.json"])["task"] == "tissue"
    assert "network_data_format" in json.loads(files["metadata.json"])


def test_full_disk_leaves_the_earlier_file(checkpoint, tmp_path, full_disk):
    (tmp_path / "model.ts").write_bytes(b"earlier")
    with full_disk, pytest.raises(OSError, match="model.ts"):
        export_model(checkpoint, tmp_path / "model.ts")
    assert [path.name for path in tmp_path.iterdir()] == ["model.ts"]
    assert (tmp_path / "model.ts").read_bytes() == b"earlier"


def test_network_on_samples_is_refused(tmp_path):
    checkpoint = save_model(tmp_path / "model.pt", model=Model(architecture="pq", size="tiny"))
    with pytest.raises(ValueError, match="'pq' cannot be exported"):
        export_model(checkpoint, tmp_path / "model.ts")


def test_another_ending_is_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"\.ts"):
        export_model(checkpoint, tmp_path / "model.onnx")
