from __future__ import annotations

import monai.transforms as mt
import numpy as np
import pytest
import torch

from dmri_monai.transforms import (
    LoadDWId,
    RandElasticDWId,
    RandRotateMMd,
    RotationInvariantsd,
    SphericalHarmonicsd,
    ToVoxelFramed,
    check_gradient_safe,
)
from tests.transforms.fields import axial_degrees, dipy_v1, field_item, true_direction
from tests.transforms.test_spatial_matrix import TRANSFORMS

UNSAFE = {
    "Rand3DElasticd": lambda: mt.Rand3DElasticd("image", (3, 4), (20, 30), prob=1),
    "GridDistortiond": lambda: mt.GridDistortiond("image", 3, [(0.1, 0.3, 0.2, -0.1)] * 3),
    "RandGridDistortiond": lambda: mt.RandGridDistortiond("image"),
    "RandSmoothDeformd": lambda: mt.RandSmoothDeformd("image", (8, 8, 8), (3, 3, 3)),
    "Transposed": lambda: mt.Transposed("image", (0, 2, 1, 3)),
    "Lambdad": lambda: mt.Lambdad("image", torch.flip),
    "MixUpd": lambda: mt.MixUpd("image", 4),
}


class Unknownd(mt.MapTransform):
    def __call__(self, data):
        return data


def pipeline(*middle, lazy: bool = False) -> mt.Compose:
    return mt.Compose([LoadDWId(), *middle, SphericalHarmonicsd(shells=[1000])], lazy=lazy)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_of_the_spatial_matrix_is_allowed(name):
    check_gradient_safe(pipeline(TRANSFORMS[name][0]()))


@pytest.mark.parametrize("name", list(UNSAFE))
@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: mt.Compose([mt.Compose([t])]),
        lambda t: mt.OneOf([mt.Flipd("image", 0), t]),
        lambda t: mt.SomeOf([t, mt.Flipd("image", 0)], num_transforms=1),
        lambda t: mt.RandomOrder([t]),
    ],
    ids=["plain", "nested", "one-of", "some-of", "random-order"],
)
def test_an_untracked_transform_is_found_and_named(name, wrap):
    with pytest.raises(
        ValueError, match=rf"pipeline\[1\].*{name} is not known to keep gradient directions right"
    ):
        check_gradient_safe(pipeline(wrap(UNSAFE[name]())))


def test_the_error_names_our_replacement():
    with pytest.raises(ValueError, match="use dmri_monai.transforms.RandElasticDWId"):
        check_gradient_safe(pipeline(UNSAFE["Rand3DElasticd"]()))


def test_a_lazy_pipeline_is_read_too():
    with pytest.raises(ValueError, match="Rand3DElasticd"):
        check_gradient_safe(pipeline(UNSAFE["Rand3DElasticd"](), lazy=True))


def test_our_own_transforms_are_allowed():
    check_gradient_safe(pipeline(RandElasticDWId(), RandRotateMMd()))


def test_an_unknown_class_is_refused_unless_named():
    with pytest.raises(ValueError, match="Unknownd is not known"):
        check_gradient_safe(pipeline(Unknownd("image")))
    check_gradient_safe(pipeline(Unknownd("image")), allow=[Unknownd])
    check_gradient_safe(pipeline(Unknownd("image")), allow=["Unknownd"])


def test_transforms_of_other_entries_are_passed_over():
    check_gradient_safe(pipeline(mt.Lambdad("label", torch.round)))


@pytest.mark.parametrize("turn", [mt.RandFlipd("image"), RandRotateMMd()], ids=["flip", "rotation"])
@pytest.mark.parametrize(
    "fix", [SphericalHarmonicsd(shells=[1000]), ToVoxelFramed()], ids=["harmonics", "vectors"]
)
def test_turning_the_grid_after_the_fit_is_refused(turn, fix):
    with pytest.raises(ValueError, match=r"pipeline\[2\].*turns the grid after"):
        check_gradient_safe([LoadDWId(), fix, turn])


def test_cropping_after_the_fit_is_allowed():
    check_gradient_safe([SphericalHarmonicsd(shells=[1000]), mt.RandSpatialCropd("image", (4, 4, 4))])


def test_invariants_may_be_turned():
    check_gradient_safe(
        [SphericalHarmonicsd(shells=[1000]), RotationInvariantsd("image"), mt.RandFlipd("image")]
    )


def test_an_elastic_transform_of_monai_does_leave_wrong_directions():
    """Why the check exists: it turns the scan by 0.4 rad about z and leaves no trace and the affine as it was."""
    item = field_item("RAS", "iso", (25, 25, 25))
    turn = [(0.0, 0.0), (0.0, 0.0), (0.4, 0.4)]
    elastic = mt.Rand3DElasticd("image", (4, 4), (0, 0), prob=1, padding_mode="border", rotate_range=turn)
    after = ToVoxelFramed()(elastic(item))
    torch.testing.assert_close(after["image"].affine, item["image"].affine)
    assert after["image"].applied_operations == []
    centre = (slice(None), *[slice(12, 13)] * 3)
    v1 = dipy_v1(after["image"].as_tensor()[centre], after["bvals"], after["bvecs"])
    truth = true_direction(np.zeros((1, 1, 1, 3)))
    for angle in (0.4, -0.4):
        c, s = np.cos(angle), np.sin(angle)
        turned = truth @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        assert axial_degrees(v1, turned).max() > 15


BOTH = ["image", "label"]
NEAREST = {"mode": ["bilinear", "nearest"]}


def test_a_lazy_pipeline_of_monai_interpolates_labels_whatever_their_mode():
    """Why the check exists: 1.6 reads the mode from the overrides of the Compose alone."""
    item = field_item(shape=(9, 9, 9))
    item["label"] = type(item["image"])(torch.randint(0, 4, (1, 9, 9, 9)) * 1.0, affine=item["image"].affine)
    steps = [RandRotateMMd(BOTH, prob=1, **NEAREST), mt.Flipd(BOTH, 0)]
    assert len(mt.Compose(steps, lazy=True)(item)["label"].unique()) > 100
    overridden = mt.Compose(steps, lazy=True, overrides={"label": {"mode": "nearest"}})
    assert set(overridden(item)["label"].unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}


@pytest.mark.parametrize(
    "step",
    [
        RandRotateMMd(BOTH, **NEAREST),
        mt.RandAffined(BOTH, **NEAREST),
        mt.Spacingd(BOTH, pixdim=(2, 2, 2), **NEAREST),
        mt.Resized(BOTH, (8, 8, 8), mode=["trilinear", "nearest"]),
    ],
    ids=["rotate", "affine", "spacing", "resize"],
)
def test_a_lazy_pipeline_must_override_the_mode_of_labels(step):
    with pytest.raises(ValueError, match=r"asks the nearest voxel of 'label', .*overrides=\{\"label\""):
        check_gradient_safe(mt.Compose([LoadDWId(), step], lazy=True))
    check_gradient_safe(mt.Compose([LoadDWId(), step], lazy=True, overrides={"label": {"mode": "nearest"}}))
    check_gradient_safe(mt.Compose([LoadDWId(), step]))


def test_a_transform_that_is_lazy_by_itself_is_found():
    step = RandRotateMMd(BOTH, lazy=True, **NEAREST)
    with pytest.raises(ValueError, match="nearest voxel of 'label'"):
        check_gradient_safe([LoadDWId(), mt.Compose([step], lazy=None)])
    check_gradient_safe(mt.Compose([step], lazy=False))


def test_a_class_of_ones_own_is_not_taken_for_that_of_monai_by_its_name():
    own = type("Flipd", (mt.MapTransform,), {"__module__": "somewhere", "__call__": lambda self, data: data})
    with pytest.raises(ValueError, match="Flipd is not known"):
        check_gradient_safe(pipeline(own("image")))
