"""An exported network is loaded only as the file its description names."""

from __future__ import annotations

import pytest
import torch

from dmri_monai.integrations.torchscript import export_model, load_exported


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    return export_model(checkpoint, tmp_path_factory.mktemp("exported") / "model.ts")


def test_whole_file_is_loaded(exported):
    assert isinstance(load_exported(exported), torch.jit.ScriptModule)


def test_one_flipped_bit_is_refused_with_both_digests(exported, tmp_path):
    damaged = tmp_path / "model.ts"
    content = bytearray(exported.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    damaged.with_suffix(".json").write_bytes(exported.with_suffix(".json").read_bytes())
    with pytest.raises(
        ValueError, match=rf"{damaged} is not the file .* its SHA-256 is \w{{64}}, expected \w{{64}}"
    ):
        load_exported(damaged)


def test_missing_files_are_named(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no exported network .*none\.ts"):
        load_exported(tmp_path / "none.ts")
    (tmp_path / "model.ts").write_bytes(exported.read_bytes())
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        load_exported(tmp_path / "model.ts")
