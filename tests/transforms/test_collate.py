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


KNOWN = {  # what two scans may know; None: nothing, and absent: not even that
    "stacked": (torch.tensor([0.0, 1, 0]), torch.tensor([1.0, 0, 0])),
    "one-none": (torch.tensor([0.0, 1, 0]), None),
    "one-absent": ("absent", torch.tensor([0.0, 1, 0])),
    "first-only": (torch.tensor([0.0, 1, 0]), "absent"),
    "both-none": (None, None),
    "lengths": (torch.tensor([0.1, 0.2]), torch.tensor([0.3])),
    "numbers": (0.05, None),
    "texts": ("an error", None),
    "lists": ([0.1, 0.2], [0.1]),
    "kinds": (torch.tensor([0.1, 0.2]), "text"),
    "mappings": ({"a": 1}, {"b": 2}),
}


def pair_knowing(values) -> list[dict]:
    pair = items()
    for item, value in zip(pair, values, strict=True):
        if not (isinstance(value, str) and value == "absent"):
            item["image"].meta["known"] = value
    return pair


def assert_same(found, expected):
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(torch.as_tensor(found), expected)
    else:
        assert found == (None if isinstance(expected, str) and expected == "absent" else expected)


@pytest.mark.parametrize("values", KNOWN.values(), ids=KNOWN.keys())
@pytest.mark.parametrize("workers", [0, 2])
def test_what_one_scan_knows_is_kept_for_it_whatever_its_neighbour_knows(values, workers):
    loader = DataLoader(
        Dataset(pair_knowing(values)), batch_size=2, num_workers=workers, collate_fn=collate_dwi
    )
    batch = next(iter(loader))
    for i, value in enumerate(values):
        assert_same(batch["image"].meta["known"][i], value)
    assert batch["image"].affine.shape == (2, 4, 4)
    for image, value, item in zip(decollate_batch(batch["image"]), values, items(), strict=True):
        assert_same(image.meta["known"], value)
        torch.testing.assert_close(image.affine, item["image"].affine)


@pytest.mark.parametrize("values", KNOWN.values(), ids=KNOWN.keys())
def test_a_scan_alone_keeps_what_it_knows(values):
    for item in pair_knowing(values):
        expected = item["image"].meta.get("known", "absent")
        image = decollate_batch(collate_dwi([item])["image"])[0]
        if isinstance(expected, torch.Tensor):
            assert_same(image.meta["known"], expected)
        assert "known" in item["image"].meta or expected == "absent"


def test_collating_leaves_the_items_as_they_are():
    pair = pair_knowing(KNOWN["one-none"])
    collate_dwi(pair)
    assert "known" in pair[0]["image"].meta


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


def test_grids_of_different_sizes_are_refused_with_both():
    one, other = (
        ToVoxelFramed()(field_item("LAS", shape=(8, 7, 6))),
        ToVoxelFramed()(field_item("LAS", shape=(8, 7, 5))),
    )
    one["image"].meta["filename_or_obj"] = "a.nii.gz"
    with pytest.raises(ValueError, match=r"\(8, 7, 6\) of a.nii.gz, \(8, 7, 5\) of an array.* batch_size 1"):
        collate_dwi([one, other])
