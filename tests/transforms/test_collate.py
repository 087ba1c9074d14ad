from __future__ import annotations

import monai.transforms as mt
import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch

from dmri_monai.qspace.harmonics import signal_to_harmonics
from dmri_monai.transforms import SphericalHarmonicsd, ToVoxelFramed, collate_dwi
from tests.transforms.fields import field_item

SMALL = {"shape": (8, 7, 6)}


def items() -> list[dict]:
    return [ToVoxelFramed()(field_item(o, n=n, **SMALL)) for o, n in (("LAS", 20), ("oblique", 30))]


def test_tables_of_different_length_are_padded_and_marked():
    batch = collate_dwi(items())
    assert batch["image"].shape == (2, 31, 8, 7, 6)
    assert batch["bvecs_voxel"].shape == batch["bvecs"].shape == (2, 31, 3)
    assert batch["valid"].sum(1).tolist() == [21, 31]
    assert batch["image"][0, 21:].abs().max() == 0


def test_padding_never_counts_as_b0():
    batch = collate_dwi(items())
    together = signal_to_harmonics(
        batch["image"].as_tensor(), batch["bvals"], batch["bvecs_voxel"], shells=[1000], mask=batch["valid"]
    )
    for b, item in enumerate(items()):
        alone = SphericalHarmonicsd(shells=[1000])(item)["image"].as_tensor()
        torch.testing.assert_close(together[b], alone, atol=1e-5, rtol=1e-5)


def test_meta_data_survive_there_and_back():
    batch = collate_dwi(items())
    for item, image in zip(items(), decollate_batch(batch["image"]), strict=True):
        torch.testing.assert_close(image.affine, item["image"].affine)
        torch.testing.assert_close(image.meta["voxel_frame"], item["image"].meta["voxel_frame"])


def test_harmonics_of_different_scans_stack_without_padding():
    fitted = [SphericalHarmonicsd(shells=[1000])(item) for item in items()]
    batch = collate_dwi(fitted)
    assert batch["image"].shape == (2, 16, 8, 7, 6)
    assert batch["image"].meta["irreps"] == ["2x0e+1x2e+1x4e"] * 2


def test_lists_of_crops_are_flattened():
    crops = mt.RandSpatialCropSamplesd("image", (4, 4, 4), num_samples=2, random_size=False)
    batch = collate_dwi([crops(item) for item in items()])
    assert batch["image"].shape == (4, 31, 4, 4, 4)


def test_meta_data_that_cannot_be_stacked_are_dropped_alone():
    pair = items()
    pair[0]["image"].meta["slice_timing_s"], pair[1]["image"].meta["slice_timing_s"] = [0.1, 0.2], [0.1]
    pair[0]["image"].meta["total_readout_time_s"] = None
    pair[1]["image"].meta["total_readout_time_s"] = 0.05
    batch = collate_dwi(pair)
    assert not {"slice_timing_s", "total_readout_time_s"} & set(batch["image"].meta)
    assert batch["image"].affine.shape == (2, 4, 4)
    assert "slice_timing_s" in pair[0]["image"].meta


@pytest.mark.parametrize(
    "fix", [ToVoxelFramed(), SphericalHarmonicsd(shells=[1000])], ids=["vectors", "harmonics"]
)
def test_a_flip_after_fixing_the_frame_is_refused(fix):
    pair = [mt.RandFlipd("image", prob=1, spatial_axis=0)(fix(field_item(**SMALL))) for _ in range(2)]
    with pytest.raises(ValueError, match="mirrored.*RandFlip"):
        collate_dwi(pair)


def test_items_without_gradients_are_collated_as_usual():
    batch = collate_dwi([{"image": torch.zeros(1, 2, 2, 2), "name": "a"}] * 2)
    assert batch["image"].shape == (2, 1, 2, 2, 2)
    assert batch["name"] == ["a", "a"]


@pytest.mark.parametrize("workers", [0, 2])
def test_it_works_in_a_loader(workers):
    data = [field_item(n=n, **SMALL) for n in (20, 30)]
    loader = DataLoader(
        Dataset(data, ToVoxelFramed()), batch_size=2, num_workers=workers, collate_fn=collate_dwi
    )
    assert next(iter(loader))["valid"].sum(1).tolist() == [21, 31]


def test_a_batch_of_which_some_have_no_table_is_an_error():
    with pytest.raises(ValueError, match="item 1 of the batch has no bvals"):
        collate_dwi([field_item(**SMALL), {"image": torch.zeros(31, 8, 7, 6)}])
