"""The disk cache by config keys: same weights, one entry a scan, harmonic channels where the recipe says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

CONFIGS = Path(__file__).parents[2] / "configs"
SHORT = {"max_epochs": 2, "batch_size": 1, "cache_rate": 0.0}


def trained_weights(prepare, dataset_dir, out, config="train", **more):
    prepare(config, dataset_dir=dataset_dir, output_dir=str(out), **SHORT, **more).run()
    return torch.load(out / "model.pt", weights_only=True)


@pytest.mark.parametrize("config", ["train", "pretrain"])
def test_training_from_the_cache_gives_the_same_weights_bit_for_bit(prepare, dataset_dir, tmp_path, config):
    cache = tmp_path / "cache"
    plain = trained_weights(prepare, dataset_dir, tmp_path / "plain", config)
    kept = trained_weights(prepare, dataset_dir, tmp_path / "kept", config, cache_dir=str(cache))
    torch.testing.assert_close(kept, plain, rtol=0, atol=0)
    made = sorted(p.name for p in cache.iterdir())
    assert len(made) == 4  # three scans to train on, one to validate, each of its own kind
    again = trained_weights(
        prepare, dataset_dir, tmp_path / "again", config, cache_dir=str(cache), num_workers=2
    )
    torch.testing.assert_close(again, plain, rtol=0, atol=0)
    assert sorted(p.name for p in cache.iterdir()) == made


def cached_harmonics(prepare, dataset_dir, tmp_path, **more):
    own = {"cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "out"), **SHORT, **more}
    return prepare("train", str(CONFIGS / "cached_harmonics.json"), dataset_dir=dataset_dir, **own)


@pytest.mark.parametrize("directions", [None, [16, 20]], ids=["all-directions", "random-directions"])
def test_recipe_keeps_harmonics_unless_directions_are_drawn(prepare, dataset_dir, tmp_path, directions):
    workflow = cached_harmonics(prepare, dataset_dir, tmp_path, subsample_directions=directions)
    dataset = workflow.parser.get_parsed_content("train#dataset")
    assert dataset[(1, 0)][0]["image"].shape == (16, 16, 16, 16)
    (entry,) = (tmp_path / "cache").iterdir()
    assert dataset.disk.path(dataset.data[0]) == entry
    kept = dataset.disk(dataset.data[0])
    assert len(kept["image"]) == (16 if directions is None else len(kept["bvals"]))
    assert ("bvals" in kept) == (directions is not None)


def test_recipe_trains(prepare, dataset_dir, tmp_path):
    cached_harmonics(prepare, dataset_dir, tmp_path).run()
    assert (tmp_path / "out" / "model.pt").is_file()
