from __future__ import annotations

import monai.transforms as mt
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from dmri_monai.gradients import grid_rotation
from dmri_monai.transforms import SphericalHarmonicsd, ToVoxelFramed, check_voxel_frame, voxel_rotation
from tests.transforms.fields import field_item

SMALL = {"shape": (8, 7, 6)}


def harmonics(item: dict) -> dict:
    return SphericalHarmonicsd(shells=[1000])(item)


def test_applying_it_twice_is_harmless():
    once = ToVoxelFramed()(field_item(**SMALL))
    twice = ToVoxelFramed()(once)
    torch.testing.assert_close(twice["bvecs_voxel"], once["bvecs_voxel"], atol=0, rtol=0)
    torch.testing.assert_close(twice["bvecs"], once["bvecs"], atol=0, rtol=0)


def test_vectors_are_made_anew_after_the_grid_has_turned():
    item = mt.Flipd("image", 0)(ToVoxelFramed()(field_item(**SMALL)))
    before = item["bvecs_voxel"].clone()
    after = ToVoxelFramed()(item)["bvecs_voxel"]
    torch.testing.assert_close(after, before * torch.tensor([-1.0, 1.0, 1.0]))


def test_the_item_given_is_left_as_it_was():
    item = field_item(**SMALL)
    ToVoxelFramed()(item)
    harmonics(item)
    assert set(item) == {"image", "bvals", "bvecs"}
    assert not {"voxel_frame", "irreps"} & set(item["image"].meta)


def test_frame_is_recorded_in_the_image():
    item = ToVoxelFramed()(field_item(**SMALL))
    recorded = item["image"].meta["voxel_frame"]
    torch.testing.assert_close(recorded, grid_rotation(item["image"].affine))


@pytest.mark.parametrize("fix", [ToVoxelFramed(), harmonics], ids=["vectors", "harmonics"])
@pytest.mark.parametrize(
    ("turn", "name"),
    [
        (mt.Flipd("image", 1), "Flip"),
        (mt.Rotated("image", (0.0, 0.0, 0.2)), "Rotate"),
        (mt.Rotate90d("image", 1, spatial_axes=(0, 1)), "Rotate90"),
        (mt.Orientationd("image", "SPL", labels=None), "Orientation"),
    ],
    ids=["flip", "rotate", "rotate90", "orientation"],
)
def test_turning_the_grid_afterwards_is_caught_and_named(fix, turn, name):
    item = turn(fix(mt.Zoomd("image", 1.1)(field_item(**SMALL))))
    with pytest.raises(ValueError, match=rf"voxel frame that has since been .* by \['{name}'\]"):
        check_voxel_frame(item["image"])


@pytest.mark.parametrize(
    "keep",
    [
        mt.CenterSpatialCropd("image", (4, 4, 4)),
        mt.SpatialPadd("image", (9, 9, 9)),
        mt.Resized("image", (9, 9, 9)),
        mt.ScaleIntensityd("image"),
    ],
    ids=["crop", "pad", "resize", "intensity"],
)
def test_what_does_not_turn_the_grid_is_allowed_afterwards(keep):
    check_voxel_frame(keep(harmonics(field_item(**SMALL)))["image"])


def test_a_turn_below_a_tenth_of_a_degree_is_tolerated():
    item = mt.Rotated("image", (0.0, 0.0, np.radians(0.05)))(ToVoxelFramed()(field_item("RAS", "iso")))
    check_voxel_frame(item["image"])


@pytest.mark.parametrize("use", [ToVoxelFramed(), harmonics], ids=["vectors", "harmonics"])
@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (mt.Transposed("image", (0, 2, 1, 3)), "Transpose"),
        (mt.Lambdad("image", lambda x: x.flip(1)), "Lambda"),
    ],
    ids=["transpose", "lambda"],
)
def test_untracked_transforms_in_the_trace_are_refused(use, transform, name):
    with pytest.raises(ValueError, match=f"{name}d? was applied"):
        use(transform(field_item(**SMALL)))


def test_a_lambda_can_be_allowed():
    item = mt.Lambdad("image", lambda x: x * 2)(field_item(**SMALL))
    assert "bvecs_voxel" in ToVoxelFramed(allow_lambda=True)(item)


def test_pending_lazy_operations_are_refused():
    item = mt.Flipd("image", 0, lazy=True)(field_item(**SMALL))
    with pytest.raises(ValueError, match="ToVoxelFramed: 1 pending lazy operations"):
        ToVoxelFramed()(item)


def test_harmonics_of_a_pending_image_are_refused():
    item = mt.Flipd("image", 0, lazy=True)(field_item(**SMALL))
    with pytest.raises(ValueError, match="SphericalHarmonicsd: 1 pending lazy operations"):
        harmonics(item)


def test_harmonics_fixed_to_an_old_frame_are_not_given_a_new_one():
    item = mt.Flipd("image", 0)(harmonics(field_item(**SMALL)))
    with pytest.raises(ValueError, match="mirrored"):
        ToVoxelFramed()(item)


def test_a_plain_tensor_is_refused():
    with pytest.raises(TypeError, match="expected a MetaTensor"):
        voxel_rotation(torch.zeros(1, 2, 2, 2), "test")  # type: ignore[arg-type]


def test_batches_are_checked_item_by_item():
    images = [harmonics(field_item(o, **SMALL))["image"] for o in ("LAS", "oblique")]
    batch = MetaTensor(
        torch.stack([i.as_tensor() for i in images]),
        affine=torch.stack([i.affine for i in images]),
        meta={
            "voxel_frame": torch.stack([i.meta["voxel_frame"] for i in images]),
            "voxel_frame_step": torch.tensor([0, 0]),
        },
        applied_operations=[[], []],
    )
    check_voxel_frame(batch)
    batch.affine = batch.affine.flip(0)
    with pytest.raises(ValueError, match=r"image \(item 0\)"):
        check_voxel_frame(batch)


def test_keys_on_grids_turned_against_each_other_cannot_share_the_vectors():
    item = field_item("RAS", **SMALL) | {"other": field_item("LAS", **SMALL)["image"]}
    with pytest.raises(ValueError, match="grid of 'other' is turned against that of another key"):
        ToVoxelFramed(["image", "other"])(item)


def test_an_item_without_vectors_is_an_error():
    with pytest.raises(ValueError, match="the item has no bvecs"):
        ToVoxelFramed()({"image": field_item(**SMALL)["image"]})
