from __future__ import annotations

import os
import pickle

import dipy.data
import monai.transforms as mt
import numpy as np
import pytest
import torch
from e3nn import o3
from monai.data import PersistentDataset

from dmri_monai.gradients import grid_rotation
from dmri_monai.qspace.irreps_rotation import rotate_irreps
from dmri_monai.transforms import (
    BrainMaskd,
    LoadDWId,
    NormalizeByB0d,
    SelectShellsd,
    SphericalHarmonicsd,
    TensorMetricsd,
    ToVoxelFramed,
    check_voxel_frame,
)
from tests.transforms.fields import ORIENTATIONS, field_item

FILES = os.path.join(os.path.dirname(dipy.data.__file__), "files")
SMALL = {"shape": (8, 7, 6)}


def test_a_real_scan_becomes_sixteen_channels():
    item = LoadDWId()({"image": os.path.join(FILES, "small_64D.nii")})
    image = SphericalHarmonicsd(shells=[1000], l_max=4)(item)["image"]
    assert image.shape == (16, 10, 10, 10)
    assert image.isfinite().all()
    assert image.meta["irreps"] == "2x0e+1x2e+1x4e"
    assert 0.2 < float(image[1].median()) / (4 * np.pi) ** 0.5 < 0.9


def test_loaded_images_agree_with_monai_loader_on_the_grid():
    path = os.path.join(FILES, "small_101D.nii.gz")
    ours, theirs = LoadDWId()({"image": path})["image"], mt.LoadImage(ensure_channel_first=True)(path)
    torch.testing.assert_close(ours.affine, theirs.affine)
    torch.testing.assert_close(ours.as_tensor(), theirs.as_tensor().float())
    for name in ("filename_or_obj", "original_affine", "spatial_shape", "space"):
        assert name in ours.meta


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_channels_of_a_flipped_scan_are_the_mirrored_channels(orientation):
    item = field_item(orientation, **SMALL)
    first = SphericalHarmonicsd(shells=[1000])(item)["image"]
    flipped = SphericalHarmonicsd(shells=[1000])(mt.Flipd("image", 0)(item))["image"]
    mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0]))
    expected = rotate_irreps(first.as_tensor()[None].flip(2), first.meta["irreps"], mirror)[0]
    torch.testing.assert_close(flipped.as_tensor(), expected, atol=1e-5, rtol=0)
    assert (flipped.as_tensor() - first.as_tensor().flip(1)).abs().max() > 1e-2  # stale coefficients


def test_world_harmonics_do_not_depend_on_how_the_scan_is_stored():
    item = field_item("oblique", **SMALL)
    stored = mt.Orientationd("image", "SPL", labels=None)(item)
    fits = []
    for one in (item, stored):
        image = SphericalHarmonicsd(shells=[1000])(one)["image"]
        world = rotate_irreps(image.as_tensor()[None], image.meta["irreps"], grid_rotation(image.affine))
        fits.append(mt.Orientation("RAS", labels=None)(type(image)(world[0], affine=image.affine)))
    torch.testing.assert_close(fits[0].as_tensor(), fits[1].as_tensor(), atol=1e-5, rtol=0)


def test_measurement_weights_of_the_item_are_used():
    item = field_item(**SMALL)
    item["weights"] = torch.ones(31)
    item["weights"][5] = 0.0
    expected = SphericalHarmonicsd(shells=[1000], weights_key="weights")(item)["image"]
    item["image"][5] = 1e4
    spoilt = SphericalHarmonicsd(shells=[1000], weights_key="weights")(item)["image"]
    torch.testing.assert_close(spoilt.as_tensor(), expected.as_tensor())


def test_several_images_share_the_table():
    item = field_item(**SMALL)
    item["target"] = item["image"] * 0.5
    out = SphericalHarmonicsd(keys=["image", "target"], shells=[1000])(item)
    torch.testing.assert_close(out["target"].as_tensor(), out["image"].as_tensor())


def test_transform_survives_pickling():
    item, transform = field_item(**SMALL), SphericalHarmonicsd(shells=[1000], missing="zero")
    again = pickle.loads(pickle.dumps(transform))
    torch.testing.assert_close(again(item)["image"].as_tensor(), transform(item)["image"].as_tensor())


def test_harmonics_are_not_fitted_twice():
    once = SphericalHarmonicsd(shells=[1000])(field_item(**SMALL))
    with pytest.raises(ValueError, match="holds harmonics"):
        SphericalHarmonicsd(shells=[1000])(once)


def test_normalised_signal_is_refused_by_the_fit():
    with pytest.raises(ValueError, match="leave out NormalizeByB0d"):
        SphericalHarmonicsd(shells=[1000])(NormalizeByB0d()(field_item(**SMALL)))


def test_an_item_without_table_is_an_error():
    with pytest.raises(ValueError, match="no bvals and no bvecs; load the scan with LoadDWId"):
        SphericalHarmonicsd(shells=[1000])({"image": field_item(**SMALL)["image"]})


def test_irreps_count_the_channels():
    transform = SphericalHarmonicsd(shells=[1000, 2000], l_max=6, missing="zero")
    image = transform(field_item(n=60, **SMALL))["image"]
    assert len(image) == o3.Irreps(image.meta["irreps"]).dim


def test_normalising_divides_by_the_mean_b0_and_clips():
    item = field_item(**SMALL)
    item["image"][3, 0, 0, 0] = 1e6
    out = NormalizeByB0d(clip=1.0)(item)["image"]
    assert out[3, 0, 0, 0] == 1.0
    torch.testing.assert_close(out.as_tensor()[1, 1], item["image"].as_tensor()[1, 1] / 100)
    torch.testing.assert_close(out.as_tensor()[0], torch.ones(8, 7, 6))


def test_dropping_b0_leaves_table_and_volumes_in_step():
    item = NormalizeByB0d(b0="drop")(field_item(**SMALL))
    assert len(item["image"]) == len(item["bvals"]) == len(item["bvecs"]) == 30
    assert item["bvals"].min() > 50


def test_collapsing_b0_puts_their_contrast_first():
    item = field_item(**SMALL)
    order = torch.tensor([1, 0, 2, 0, *range(3, 31)])
    item = {k: v[order] for k, v in item.items()}
    item["image"][[1, 3], 0] *= 2.0
    out = NormalizeByB0d(b0="collapse")(item)
    assert out["bvals"].tolist() == [0.0] + [1000.0] * 30
    assert len(out["image"]) == 31
    assert out["bvecs"][0].norm() == 0
    torch.testing.assert_close(out["image"].as_tensor()[0, 0], torch.full((7, 6), 2.0))
    torch.testing.assert_close(out["image"].as_tensor()[0, 1], torch.ones(7, 6))


def test_normalising_zeroes_what_lies_outside_the_mask():
    item = field_item(**SMALL)
    item["mask"] = torch.zeros(1, 8, 7, 6)
    item["mask"][:, 2:6] = 1
    out = NormalizeByB0d(mask_key="mask")(item)["image"]
    assert out[:, :2].abs().max() == 0
    assert out[:, 2:6].min() > 0


def test_empty_voxels_are_zero_not_nan():
    item = field_item(**SMALL)
    item["image"][:, 0] = 0
    assert NormalizeByB0d()(item)["image"][:, 0].abs().max() == 0


MASKED = {
    "harmonics": SphericalHarmonicsd(shells=[1000], mask_key="mask"),
    "normalise": NormalizeByB0d(mask_key="mask"),
    "tensor": TensorMetricsd(mask_key="mask"),
}


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.parametrize("shape", [(8, 7, 6), (2, 8, 7, 6), (1, 8, 7, 5)], ids=str)
def test_a_mask_of_another_shape_is_an_error(name, shape):
    item = field_item(**SMALL) | {"mask": torch.ones(shape)}
    with pytest.raises(ValueError, match=r"mask 'mask' has shape .*, expected \(1, 8, 7, 6\)"):
        MASKED[name](item)


@pytest.mark.parametrize("name", MASKED)
def test_a_mask_on_a_mirrored_grid_of_the_same_size_is_an_error(name):
    mirrored = field_item("LAS", **SMALL)["image"][:1]
    with pytest.raises(ValueError, match=r"'mask' lies up to .* mm beside the image"):
        MASKED[name](field_item("RAS", **SMALL) | {"mask": mirrored})


@pytest.mark.parametrize("name", MASKED)
def test_a_missing_mask_is_an_error(name):
    with pytest.raises(ValueError, match="the item has no mask 'mask'"):
        MASKED[name](field_item(**SMALL))


def test_rounding_of_the_affine_of_a_mask_is_tolerated():
    item = field_item(**SMALL)
    item["mask"] = type(item["image"])(
        torch.ones(1, 8, 7, 6), affine=item["image"].affine.float() * (1 + 1e-4)
    )
    MASKED["harmonics"](item)


def test_weights_of_another_length_are_an_error():
    with pytest.raises(ValueError, match="3 weights 'weights' for 31 b-values"):
        SphericalHarmonicsd(shells=[1000], weights_key="weights")(
            field_item(**SMALL) | {"weights": torch.ones(3)}
        )


@pytest.mark.parametrize(
    "transform",
    [NormalizeByB0d(b0="collapse"), SphericalHarmonicsd(shells=[1000]), SelectShellsd(), BrainMaskd()],
    ids=lambda t: type(t).__name__,
)
def test_tables_may_be_arrays_and_images_may_not(transform):
    item = field_item(**SMALL)
    arrays = {name: item[name].numpy() for name in ("bvals", "bvecs")}
    torch.testing.assert_close(
        transform(item | arrays)["image"].as_tensor(), transform(item)["image"].as_tensor()
    )
    with pytest.raises(TypeError, match="'image' is a Tensor, expected a MetaTensor"):
        transform(item | {"image": item["image"].as_tensor()})


def test_harmonics_survive_a_persistent_cache(tmp_path):
    pipeline = mt.Compose([SphericalHarmonicsd(shells=[1000]), ToVoxelFramed()])
    first, again = (
        PersistentDataset([field_item(**SMALL)], pipeline, cache_dir=tmp_path)[0] for _ in range(2)
    )
    torch.testing.assert_close(again["image"].as_tensor(), first["image"].as_tensor(), atol=0, rtol=0)
    assert again["image"].meta["irreps"] == "2x0e+1x2e+1x4e"
    with pytest.raises(ValueError, match="mirrored"):
        check_voxel_frame(mt.Flipd("image", 0)(again)["image"])


def test_keys_with_different_tables_are_not_loaded_into_one():
    paths = {"image": os.path.join(FILES, "small_64D.nii"), "other": os.path.join(FILES, "small_101D.nii.gz")}
    with pytest.raises(
        ValueError, match=r"table of .*small_101D.nii.gz differs from that of .*small_64D.nii"
    ):
        LoadDWId(["image", "other"])(paths)
    same = LoadDWId(["image", "other"])({"image": paths["image"], "other": paths["image"]})
    torch.testing.assert_close(same["other"].as_tensor(), same["image"].as_tensor())
