from __future__ import annotations

import monai.transforms as mt
import numpy as np
import pytest
import torch

from dmri_monai.gradients import grid_rotation
from dmri_monai.transforms import RandRotateMMd, SphericalHarmonicsd, ToVoxelFramed
from dmri_monai.transforms.random_rotation import random_rotation, rotated_affine
from tests.transforms.fields import ORIENTATIONS, SPACINGS, field_item, v1_error

GRIDS = [(o, s) for o in ORIENTATIONS for s in SPACINGS]


def rotate(seed: int = 1, **kwargs) -> RandRotateMMd:
    return RandRotateMMd(**{"prob": 1.0, "padding_mode": "border", **kwargs}).set_random_state(seed)


@pytest.mark.parametrize(("orientation", "spacing"), GRIDS, ids=["-".join(g) for g in GRIDS])
def test_directions_are_right_after_any_rotation_in_millimetres(orientation, spacing):
    item = field_item(orientation, spacing)
    after = ToVoxelFramed()(rotate()(item))
    assert v1_error(after, after["bvecs_voxel"], item).max() <= 0.1
    stale = ToVoxelFramed()(item)["bvecs_voxel"]
    assert np.median(v1_error(after, stale, item)) > 5


@pytest.mark.parametrize("spacing", SPACINGS)
def test_axes_stay_orthogonal_and_spacing_stays(spacing):
    linear = rotate()(field_item("oblique", spacing))["image"].affine[:3, :3]
    expected = torch.diag(torch.tensor(SPACINGS[spacing], dtype=torch.float64) ** 2)
    torch.testing.assert_close(linear.T @ linear, expected)


def test_monai_rotations_shear_an_anisotropic_grid():
    """The control: why rotations belong in millimetres."""
    item = mt.Rotated("image", angle=(0.35, 0.0, 0.0))(field_item("RAS", "thick"))
    x = item["image"].affine[:3, :3] / item["image"].affine[:3, :3].norm(dim=0)
    assert float((x[:, 1] * x[:, 2]).sum().abs()) > 0.2


def test_the_centre_of_the_grid_stays_in_place():
    item = field_item("oblique", "thick", (9, 11, 7))
    after = rotate()(item)["image"]
    centre = torch.tensor([4.0, 5.0, 3.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(after.affine @ centre, item["image"].affine @ centre)
    torch.testing.assert_close(
        after[:, 4, 5, 3].as_tensor(), item["image"][:, 4, 5, 3].as_tensor(), rtol=1e-4, atol=0
    )


def test_voxel_frame_of_a_sheared_grid_turns_by_the_rotation_drawn():
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.5, 0.2], [0.1, 0.0, 3.0]])
    rotation = random_rotation(np.random.RandomState(0))
    turned = rotated_affine(affine, (10, 10, 10), rotation)
    torch.testing.assert_close(grid_rotation(turned), grid_rotation(affine) @ rotation)


def test_rotations_are_uniform():
    random_state = np.random.RandomState(0)
    drawn = torch.stack([random_rotation(random_state) for _ in range(4000)])
    torch.testing.assert_close(drawn.mean(0), torch.zeros(3, 3, dtype=torch.float64), atol=0.04, rtol=0)
    torch.testing.assert_close((drawn**2).mean(0), torch.full((3, 3), 1 / 3).double(), atol=0.02, rtol=0)
    torch.testing.assert_close(drawn @ drawn.mT, torch.eye(3).double().expand(4000, 3, 3))


def test_angle_stays_below_the_maximum():
    random_state = np.random.RandomState(0)
    traces = [float(random_rotation(random_state, 25).trace()) for _ in range(500)]
    angles = np.degrees(np.arccos((np.array(traces) - 1) / 2))
    assert 24 < angles.max() <= 25 + 1e-6


def test_inverse_brings_back_grid_and_values():
    item = field_item("oblique", "aniso")
    transform = rotate(max_degrees=15.0)
    back = transform.inverse(transform(item))
    torch.testing.assert_close(back["image"].affine, item["image"].affine)
    inner = (slice(None), *[slice(6, -6)] * 3)
    torch.testing.assert_close(
        back["image"].as_tensor()[inner], item["image"].as_tensor()[inner], rtol=5e-3, atol=0
    )
    assert back["image"].applied_operations == []


def test_inverse_of_a_transform_not_applied_changes_nothing():
    item, transform = field_item(shape=(6, 6, 6)), RandRotateMMd(prob=0.0)
    back = transform.inverse(transform(item))
    torch.testing.assert_close(back["image"].as_tensor(), item["image"].as_tensor(), rtol=0, atol=0)
    assert back["image"].applied_operations == []


def test_lazy_and_eager_agree():
    item = field_item("oblique", "thick")
    eager = rotate()(item)["image"]
    pending = mt.Compose([RandRotateMMd(prob=1.0, padding_mode="border")], lazy=True)
    pending.transforms[0].set_random_state(1)
    lazy = pending(item)["image"]
    torch.testing.assert_close(lazy.affine, eager.affine)
    inner = (slice(None), *[slice(5, -5)] * 3)
    torch.testing.assert_close(lazy.as_tensor()[inner], eager.as_tensor()[inner], rtol=1e-3, atol=0)


def test_a_lazy_chain_resamples_only_the_crop():
    chain = mt.Compose(
        [rotate(lazy=True), mt.Flipd("image", 0), mt.CenterSpatialCropd("image", (12, 12, 10))], lazy=True
    )
    item = field_item("oblique", "aniso")
    after = ToVoxelFramed()(chain(item))
    assert after["image"].shape[1:] == (12, 12, 10)
    assert v1_error(after, after["bvecs_voxel"], item).max() <= 0.1


def test_harmonics_at_the_end_of_a_lazy_pipeline_see_the_resampled_scan():
    item = field_item("oblique", "aniso")
    last = SphericalHarmonicsd(shells=[1000])
    eager = last(mt.Flipd("image", 0)(rotate()(item)))["image"]
    lazy = mt.Compose([RandRotateMMd(prob=1.0, padding_mode="border"), mt.Flipd("image", 0), last], lazy=True)
    lazy.transforms[0].set_random_state(1)
    channels = lazy(item)["image"]
    inner = (slice(None), *[slice(5, -5)] * 3)
    torch.testing.assert_close(channels.as_tensor()[inner], eager.as_tensor()[inner], atol=2e-3, rtol=0)


def test_labels_move_with_the_image():
    item = field_item("oblique", "thick")
    item["label"] = (item["image"][1:2] > item["image"][1:2].median()) * 1.0
    after = rotate(keys=["image", "label"], mode=["bilinear", "nearest"])(item)
    torch.testing.assert_close(after["label"].affine, after["image"].affine)
    assert set(after["label"].unique().tolist()) == {0.0, 1.0}


def test_the_same_seed_gives_the_same_rotation():
    item = field_item(shape=(8, 8, 8))
    first, second = (rotate(seed=5)(item)["image"].as_tensor() for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert (rotate(seed=6)(item)["image"].as_tensor() - first).abs().max() > 1


def test_harmonics_of_the_rotated_scan_are_the_rotated_harmonics():
    from dmri_monai.qspace.irreps_rotation import rotate_irreps

    item = field_item("LAS", "iso", (15, 15, 15), n=60)
    before = SphericalHarmonicsd(shells=[1000])(item)["image"]
    transform = rotate()
    after = SphericalHarmonicsd(shells=[1000])(transform(item))["image"]
    centre = before.as_tensor()[None, :, 7:8, 7:8, 7:8]
    expected = rotate_irreps(centre, before.meta["irreps"], transform.rotation.T)[0]
    torch.testing.assert_close(after.as_tensor()[:, 7:8, 7:8, 7:8], expected, atol=5e-3, rtol=0)


def test_keys_on_different_grids_make_the_same_motion_in_the_world():
    """A label stored with other axes, size and spacing stays in register with the image."""
    item = field_item("LAS", "aniso", (20, 22, 18))
    item["label"] = field_item("PLS", "thick", (24, 26, 9))["image"][:1]
    after = rotate(keys=["image", "label"], max_degrees=90)(item)
    motions = [after[k].affine @ torch.linalg.inv(item[k].affine) for k in ("image", "label")]
    torch.testing.assert_close(motions[0], motions[1])
    linear = motions[0][:3, :3]
    torch.testing.assert_close(linear @ linear.T, torch.eye(3, dtype=torch.float64))
    assert (linear - torch.eye(3)).abs().max() > 0.1


def test_an_image_without_affine_is_refused():
    with pytest.raises(TypeError, match="'image' is a Tensor, expected a MetaTensor"):
        rotate()({"image": torch.zeros(1, 4, 4, 4)})
