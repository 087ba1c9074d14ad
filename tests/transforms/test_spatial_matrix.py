"""MONAI's own spatial transforms are right on gradient data, because b-vectors live in the world frame."""

from __future__ import annotations

import monai.transforms as mt
import numpy as np
import pytest
import torch

from dmri_monai.gradients import grid_rotation
from dmri_monai.transforms import ToVoxelFramed
from tests.transforms.fields import ORIENTATIONS, SPACINGS, field_item, v1_error

KEYS = "image"
TURN = [0.3, -0.2, 0.4]
BILINEAR = {"mode": "bilinear", "padding_mode": "border"}
TRILINEAR = {"mode": "trilinear", "align_corners": True}
# name -> (transform, whether it turns the grid)
TRANSFORMS = {
    "Orientation": (lambda: mt.Orientationd(KEYS, axcodes="SPL", labels=None), True),
    "Spacing": (lambda: mt.Spacingd(KEYS, pixdim=(2.2, 1.8, 2.4), **BILINEAR), False),
    "Flip": (lambda: mt.Flipd(KEYS, spatial_axis=0), True),
    "Rotate": (lambda: mt.Rotated(KEYS, angle=TURN, **BILINEAR), True),
    "Rotate90": (lambda: mt.Rotate90d(KEYS, k=1, spatial_axes=(0, 2)), True),
    "Zoom": (lambda: mt.Zoomd(KEYS, zoom=1.3, mode="trilinear", align_corners=True), False),
    "Resize": (
        lambda: mt.Resized(KEYS, spatial_size=(25, 18, 20), mode="trilinear", align_corners=True),
        False,
    ),
    "Affine": (
        lambda: mt.Affined(
            KEYS, rotate_params=TURN, scale_params=(1.1, 0.9, 1.0), shear_params=(0.1,) * 6, **BILINEAR
        ),
        True,
    ),
    "RandAffine": (
        lambda: mt.RandAffined(KEYS, prob=1, rotate_range=[(0.3, 0.5)] * 3, scale_range=0.1, **BILINEAR),
        True,
    ),
    "RandRotate": (
        lambda: mt.RandRotated(KEYS, prob=1, range_x=(0.3, 0.5), **BILINEAR),
        True,
    ),
    "RandFlip": (lambda: mt.RandFlipd(KEYS, prob=1, spatial_axis=1), True),
    "RandRotate90": (lambda: mt.RandRotate90d(KEYS, prob=1, max_k=1, spatial_axes=(1, 2)), True),
    "RandZoom": (
        lambda: mt.RandZoomd(KEYS, prob=1, min_zoom=1.2, max_zoom=1.4, **TRILINEAR),
        False,
    ),
    "RandSpatialCrop": (lambda: mt.RandSpatialCropd(KEYS, roi_size=(14, 12, 13), random_size=False), False),
    "CenterSpatialCrop": (lambda: mt.CenterSpatialCropd(KEYS, roi_size=(14, 12, 13)), False),
    "SpatialPad": (lambda: mt.SpatialPadd(KEYS, spatial_size=(24, 25, 26), mode="edge"), False),
    "DivisiblePad": (lambda: mt.DivisiblePadd(KEYS, k=8, mode="edge"), False),
    "lazy chain": (
        lambda: mt.Compose(
            [
                mt.Flipd(KEYS, spatial_axis=0),
                mt.Rotated(KEYS, angle=TURN, **BILINEAR),
                mt.Zoomd(KEYS, zoom=1.2, mode="bilinear"),
                mt.CenterSpatialCropd(KEYS, roi_size=(16, 16, 14)),
            ],
            lazy=True,
            overrides={KEYS: BILINEAR},
        ),
        True,
    ),
}
GRIDS = [(o, s) for o in ORIENTATIONS for s in SPACINGS]


def transformed(name: str, item: dict) -> dict:
    transform = TRANSFORMS[name][0]()
    if isinstance(transform, mt.Randomizable):
        transform.set_random_state(3)
    return ToVoxelFramed()(transform(dict(item)))


@pytest.mark.parametrize(("orientation", "spacing"), GRIDS, ids=["-".join(g) for g in GRIDS])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_tensor_fit_after_a_tracked_transform_finds_the_true_direction(name, orientation, spacing):
    item = field_item(orientation, spacing)
    after = transformed(name, item)
    error = v1_error(after, after["bvecs_voxel"], item)
    assert len(error) > 100
    assert error.max() <= 0.1


@pytest.mark.parametrize(("orientation", "spacing"), GRIDS, ids=["-".join(g) for g in GRIDS])
@pytest.mark.parametrize("name", [n for n, (_, turns) in TRANSFORMS.items() if turns])
def test_stale_vectors_are_wrong_after_a_transform_that_turns_the_grid(name, orientation, spacing):
    item = field_item(orientation, spacing)
    stale = ToVoxelFramed()(item)["bvecs_voxel"]
    assert np.median(v1_error(transformed(name, item), stale, item)) > 5.0


def test_the_field_itself_is_fitted_right_on_every_grid():
    for orientation, spacing in GRIDS:
        item = ToVoxelFramed()(field_item(orientation, spacing))
        assert v1_error(item, item["bvecs_voxel"], item).max() < 0.01


def test_voxel_vectors_follow_the_polar_factor_of_the_affine():
    item = ToVoxelFramed()(field_item())
    expected = item["bvecs"].double() @ grid_rotation(item["image"].affine)
    torch.testing.assert_close(item["bvecs_voxel"].double(), expected, atol=1e-6, rtol=0)
