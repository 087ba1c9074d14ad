"""Exported networks: the same output at any size, and no file where the disk is full."""

import json
import shutil

import pytest
import torch

from dmri_monai.inference.model import load_model
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.weights import digest_of
from dmri_monai.integrations.bundle_metadata import bundle_metadata
from dmri_monai.integrations.torchscript import export_model
from dmri_monai.io.checksums import checked
from tests.small_models import save_model


@pytest.mark.parametrize("architecture", ["any", "equivariant", "plain", "plain-directions"])
def test_exported_network_gives_the_same_output_at_any_size(tmp_path, architecture):
    checkpoint = save_model(tmp_path / "model.pt", architecture=architecture, n_directions=12)
    model = load_model(checkpoint, "cpu")
    exported = torch.jit.load(export_model(checkpoint, tmp_path / "exported.ts"))
    for size in [(16, 16, 16), (24, 16, 32)]:
        image = torch.rand(1, model.spec.in_channels, *size)
        with torch.no_grad():
            torch.testing.assert_close(exported(image), model.network(image), rtol=1e-4, atol=1e-4)


def test_exported_file_says_what_it_needs(checkpoint, tmp_path):
    files = {"metadata.json": "", "model.json": ""}
    torch.jit.load(export_model(checkpoint, tmp_path / "model.ts"), _extra_files=files)
    spec = ModelSpec.load(checkpoint.with_suffix(".json"))
    assert ModelSpec.of(checked(json.loads(files["model.json"]))) == spec
    assert json.loads(files["metadata.json"]) == bundle_metadata(spec)


def test_released_model_is_exported_by_its_name(tmp_path):
    exported = torch.jit.load(export_model("tissue", tmp_path / "model.ts"))
    assert exported(torch.rand(1, 37, 16, 16, 16)).shape == (1, 4, 16, 16, 16)


def test_description_beside_the_file_has_its_digest(checkpoint, tmp_path):
    path = export_model(checkpoint, tmp_path / "model.ts")
    assert ModelSpec.load(tmp_path / "model.json").sha256 == digest_of(path)


def test_full_disk_leaves_the_earlier_file(checkpoint, tmp_path, full_disk):
    (tmp_path / "model.ts").write_bytes(b"earlier")
    with full_disk, pytest.raises(OSError, match="model.ts"):
        export_model(checkpoint, tmp_path / "model.ts")
    assert [path.name for path in tmp_path.iterdir()] == ["model.ts"]
    assert (tmp_path / "model.ts").read_bytes() == b"earlier"


def test_network_on_samples_is_refused(tmp_path):
    checkpoint = save_model(tmp_path / "model.pt", architecture="pq")
    with pytest.raises(ValueError, match="'pq' cannot be exported"):
        export_model(checkpoint, tmp_path / "exported.ts")


def test_another_ending_is_refused(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"\.ts"):
        export_model(checkpoint, tmp_path / "model.onnx")


@pytest.mark.parametrize("content", [None, "{}"], ids=["weights", "settings"])
def test_exported_network_takes_no_description_of_others(checkpoint, tmp_path, content):
    if content is None:
        for name in ("model.pt", "model.json"):
            shutil.copyfile(checkpoint.with_name(name), tmp_path / name)
    else:
        (tmp_path / "model.json").write_text(content, encoding="utf-8")
    before = (tmp_path / "model.json").read_bytes()
    with pytest.raises(FileExistsError, match=r"model\.json"):
        export_model(checkpoint, tmp_path / "model.ts")
    assert (tmp_path / "model.json").read_bytes() == before
    assert not (tmp_path / "model.ts").exists()
