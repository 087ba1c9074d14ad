from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.data.meta_tensor import MetaTensor
from monai.utils import set_determinism

from dmri_monai.transforms import (
    NormalizeByB0d,
    RandDropShelld,
    RandSubsampleDirectionsd,
    SelectShellsd,
    SphericalHarmonicsd,
    ToVoxelFramed,
    collate_dwi,
)
from tests.transforms.fields import directions


def item(shells: tuple[float, ...] = (1000, 2000, 3000), n: int = 40, n_b0: int = 4) -> dict:
    """Volume i holds the number i everywhere, so that it can be followed."""
    bvals = np.concatenate([np.zeros(n_b0), *[np.full(n, b) for b in shells]])
    bvecs = np.concatenate([np.zeros((n_b0, 3)), *[directions(n, int(b)) for b in shells]])
    order = np.random.default_rng(0).permutation(len(bvals))
    image = torch.arange(len(bvals), dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 3, 3) + 1
    return {
        "image": MetaTensor(image.clone(), affine=torch.eye(4, dtype=torch.float64)),
        "bvals": torch.tensor(bvals[order], dtype=torch.float32),
        "bvecs": torch.tensor(bvecs[order], dtype=torch.float32),
    }


def assert_in_step(out: dict, original: dict) -> None:
    kept = out["image"][:, 0, 0, 0].as_tensor().long() - 1
    for name in ("bvals", "bvecs"):
        torch.testing.assert_close(out[name], original[name][kept])


def test_selected_shells_keep_b0_and_order():
    original = item()
    out = SelectShellsd(shells=[1000, 3000])(original)
    assert sorted(set(out["bvals"].tolist())) == [0, 1000, 3000]
    assert len(out["image"]) == 84
    assert_in_step(out, original)


def test_a_shell_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match=r"no volume at b = 1500; b-values: \[0, 1000, 2000, 3000\]"):
        SelectShellsd(shells=[1500])(item())


@pytest.mark.parametrize("seed", range(5))
def test_a_subset_has_the_directions_asked_for_and_a_b0(seed):
    original = item()
    out = RandSubsampleDirectionsd(directions=(15, 20), b0=(1, 2)).set_random_state(seed)(original)
    assert_in_step(out, original)
    assert 1 <= int((out["bvals"] == 0).sum()) <= 2
    for b in (1000, 2000, 3000):
        assert 15 <= int((out["bvals"] == b).sum()) <= 20


def test_fifteen_spread_directions_are_enough_for_order_four():
    for seed in range(10):
        out = RandSubsampleDirectionsd(directions=(18, 18)).set_random_state(seed)(item(shells=(1000,), n=64))
        SphericalHarmonicsd(shells=[1000])(out)


def test_all_entries_of_the_table_follow():
    original = ToVoxelFramed()(item())
    original["weights"] = torch.rand(len(original["bvals"]))
    out = RandSubsampleDirectionsd(directions=(10, 10)).set_random_state(0)(original)
    kept = out["image"][:, 0, 0, 0].as_tensor().long() - 1
    for name in ("bvecs_voxel", "weights"):
        torch.testing.assert_close(out[name], original[name][kept])


@pytest.mark.parametrize("seed", range(6))
def test_dropping_shells_leaves_at_least_one_and_the_b0(seed):
    original = item()
    out = RandDropShelld(prob=1.0).set_random_state(seed)(original)
    assert_in_step(out, original)
    left = set(out["bvals"].tolist())
    assert 0.0 in left
    assert 1 <= len(left - {0.0}) <= 2


def test_the_only_shell_is_never_dropped():
    original = item(shells=(1000,))
    assert len(RandDropShelld(prob=1.0)(original)["bvals"]) == len(original["bvals"])


def test_every_shell_is_dropped_sometimes():
    seen = set()
    for seed in range(20):
        seen |= {0, 1000, 2000, 3000} - set(
            RandDropShelld(prob=1.0).set_random_state(seed)(item())["bvals"].tolist()
        )
    assert seen == {1000, 2000, 3000}


@pytest.mark.parametrize(
    "transform",
    [RandSubsampleDirectionsd(directions=(5, 30)), RandDropShelld(prob=1.0)],
    ids=["subsampled", "shell dropped"],
)
def test_the_seed_decides(transform):
    first, again = (transform.set_random_state(7)(item())["bvals"] for _ in range(2))
    torch.testing.assert_close(first, again)


def test_set_determinism_makes_loaders_repeat_themselves():
    def counts(workers: int) -> list[int]:
        set_determinism(3)
        data = Dataset([item()] * 4, RandSubsampleDirectionsd(directions=(5, 30)))
        loader = DataLoader(data, batch_size=1, num_workers=workers, collate_fn=collate_dwi)
        return [int(batch["valid"].sum()) for batch in loader]

    try:
        assert counts(2) == counts(2)
        assert counts(0) == counts(0)
        assert len(set(counts(0))) > 1
    finally:
        set_determinism(None)


def test_ranges_must_be_in_order():
    with pytest.raises(ValueError, match=r"directions must be .* got \(20, 10\)"):
        RandSubsampleDirectionsd(directions=(20, 10))


def test_images_that_share_the_table_are_cut_together():
    original = item()
    original["target"] = original["image"].clone()
    out = SelectShellsd(keys=["image", "target"], shells=[2000])(original)
    torch.testing.assert_close(out["target"].as_tensor(), out["image"].as_tensor())


def test_normalising_after_a_subset_still_finds_a_b0():
    out = RandSubsampleDirectionsd(directions=(6, 6), b0=(1, 1)).set_random_state(0)(item())
    assert NormalizeByB0d()(out)["image"].isfinite().all()


@pytest.mark.parametrize(
    "transform",
    [
        SelectShellsd(shells=[1000], allow_missing_keys=True),
        RandSubsampleDirectionsd(allow_missing_keys=True),
        RandDropShelld(prob=1.0, allow_missing_keys=True),
    ],
    ids=["select", "subsample", "drop"],
)
def test_an_item_without_the_image_is_left_alone(transform):
    table = {"bvals": torch.tensor([0.0, 500.0]), "bvecs": torch.zeros(2, 3)}
    assert transform(table) == table
