from __future__ import annotations

import monai.transforms as mt
import numpy as np
import pytest
import torch
from e3nn import o3
from monai.data.meta_tensor import MetaTensor

from dmri_monai.gradients import grid_rotation
from dmri_monai.qspace.direction_sets import dyads_to_peaks, peaks_to_dyads, spread_directions, spread_subset
from dmri_monai.qspace.tensor import tensor_metrics
from dmri_monai.transforms import (
    DirectionsToVoxelFramed,
    DirectionsToWorldFramed,
    DyadsToPeaksd,
    PeaksToDyadsd,
    RandRotateMMd,
    SphericalHarmonicsd,
    SwapLeftRightd,
    TensorMetricsd,
    check_voxel_frame,
    turn_directions,
)
from tests.transforms.fields import (
    ORIENTATIONS,
    axial_degrees,
    field_item,
    true_direction,
    well_inside,
    world_points,
)

SHAPE = (20, 22, 18)
BORDER = {"padding_mode": "border"}


def with_peaks(orientation: str = "oblique", spacing: str = "aniso") -> dict:
    """The scan of the field and its true directions, in the world frame."""
    item = field_item(orientation, spacing, SHAPE)
    item["peaks"] = peaks_of(item["image"])
    return item


def peaks_of(image: MetaTensor) -> MetaTensor:
    truth = true_direction(world_points(image.affine.numpy(), image.shape[1:]))
    return MetaTensor(torch.tensor(np.moveaxis(truth, -1, 0).copy()), affine=image.affine)


def last(field: torch.Tensor) -> np.ndarray:
    return np.moveaxis(torch.as_tensor(field).as_subclass(torch.Tensor).numpy(), 0, -1)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_world_peaks_follow_a_rotation_without_being_touched(orientation):
    item = with_peaks(orientation)
    turn = RandRotateMMd(["image", "peaks"], prob=1, mode=["bilinear", "nearest"], padding_mode="border")
    after = turn.set_random_state(0)(item)
    inside = well_inside(after, reference=item)
    assert (
        np.quantile(axial_degrees(last(after["peaks"]), last(peaks_of(after["image"])))[inside], 0.95) < 2.0
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_voxel_frame_labels_agree_with_a_tensor_fit_in_the_voxel_frame(orientation):
    item = with_peaks(orientation)
    item = mt.Flipd(["image", "peaks"], 0)(item)
    world = TensorMetricsd(metrics=("v1",))(item)["v1"]
    voxel = last(world) @ grid_rotation(item["image"].affine).numpy()
    target = DirectionsToVoxelFramed("peaks", "peaks")(item)["peaks"]
    assert axial_degrees(last(target), voxel).max() < 0.5
    assert np.median(axial_degrees(last(item["peaks"]), voxel)) > 5 or orientation == "LAS"


KINDS = {"peaks": 6, "tensors": 6, "dyads": 12, "2x0e+1x2e+1x4e": 16}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_there_and_back_is_the_identity(kind, orientation):
    image = field_item(orientation, shape=(4, 5, 6))["image"]
    field = MetaTensor(torch.randn(KINDS[kind], 4, 5, 6, dtype=torch.float64), affine=image.affine)
    there = DirectionsToVoxelFramed("field", kind)({"field": field})
    back = DirectionsToWorldFramed("field", kind)(there)["field"]
    torch.testing.assert_close(back.as_tensor(), field.as_tensor(), atol=1e-5, rtol=0)
    assert "voxel_frame" not in back.meta


def test_kinds_turn_alike():
    rotation = o3.rand_matrix(dtype=torch.float64)
    peaks = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    turned = turn_directions(peaks, "peaks", rotation)
    torch.testing.assert_close(
        turn_directions(peaks_to_dyads(peaks), "dyads", rotation), peaks_to_dyads(turned)
    )
    vectors = turn_directions(peaks[[1, 2, 0]], "1o", rotation)  # e3nn's l = 1 is y z x in integral order
    assert vectors.shape == peaks.shape


def test_missing_peaks_stay_missing_when_turned():
    peaks = torch.full((6, 2, 2, 2), torch.nan)
    peaks[:3] = 1.0
    turned = turn_directions(peaks, "peaks", o3.rand_matrix())
    assert turned[3:].isnan().all()
    assert not turned[:3].isnan().any()


def test_turning_twice_is_an_error():
    once = DirectionsToVoxelFramed("peaks")(with_peaks())
    with pytest.raises(ValueError, match="'peaks' is in the voxel frame already"):
        DirectionsToVoxelFramed("peaks")(once)
    world = DirectionsToWorldFramed("peaks")(once)
    with pytest.raises(ValueError, match="'peaks' is in the world frame already"):
        DirectionsToWorldFramed("peaks")(world)


def test_a_flip_of_voxel_frame_labels_is_caught():
    item = mt.Flipd("peaks", 0)(DirectionsToVoxelFramed("peaks")(with_peaks()))
    with pytest.raises(ValueError, match="peaks: its directions were fixed to a voxel frame"):
        check_voxel_frame(item["peaks"], "peaks")


def test_wrong_channel_counts_are_an_error():
    with pytest.raises(ValueError, match="peaks have 4 channels, expected a multiple of 3"):
        turn_directions(torch.zeros(4, 2, 2, 2), "peaks", torch.eye(3))
    with pytest.raises(ValueError, match=r"field has 4 channels, irreps 1x2e have 5"):
        turn_directions(torch.zeros(4, 2, 2, 2), "1x2e", torch.eye(3))


def test_dyads_keep_axis_and_length():
    peaks = torch.randn(6, 3, 3, 3, dtype=torch.float64)
    back = dyads_to_peaks(peaks_to_dyads(peaks))
    for n in (slice(0, 3), slice(3, 6)):
        assert axial_degrees(last(back[n]), last(peaks[n])).max() < 1e-3
        torch.testing.assert_close(back[n].norm(dim=0), peaks[n].norm(dim=0))


def test_opposite_signs_do_not_cancel_as_dyads():
    v = torch.tensor([0.6, 0.0, 0.8]).view(3, 1, 1, 1)
    mean = (peaks_to_dyads(v) + peaks_to_dyads(-v)) / 2
    torch.testing.assert_close(dyads_to_peaks(mean).abs(), v)


def test_no_peak_becomes_nan_again():
    peaks = torch.tensor([[1.0, 0, 0], [0.0, 0, 0], [torch.nan] * 3]).T.view(3, 3, 1, 1)
    back = dyads_to_peaks(peaks_to_dyads(peaks))
    assert back.isnan().all(dim=0).flatten().tolist() == [False, True, True]


def pipeline() -> mt.Compose:
    return mt.Compose(
        [
            mt.Orientationd("image", "RAS", labels=None),
            mt.Spacingd("image", pixdim=(1.8, 1.8, 1.8), padding_mode="border"),
            RandRotateMMd("image", prob=1, max_degrees=30, padding_mode="border"),
            mt.Flipd("image", 1),
            SphericalHarmonicsd(shells=[1000]),
        ]
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_predicted_directions_return_to_the_original_grid_and_frame(orientation):
    item = field_item(orientation, "aniso", (24, 26, 22))
    transforms = pipeline()
    transforms.transforms[2].set_random_state(0)
    after = transforms(item)
    image = after["image"]
    # a perfect prediction, in the voxel frame as a network gives it, of random sign
    sign = torch.where(
        torch.rand(1, *image.shape[1:], generator=torch.Generator().manual_seed(0)) > 0.5, 1.0, -1.0
    )
    truth = turn_directions(peaks_of(image).as_tensor(), "peaks", grid_rotation(image.affine).T)
    after["pred"] = MetaTensor(truth * sign, meta=image.meta, applied_operations=image.applied_operations)
    post = mt.Compose(
        [
            DirectionsToWorldFramed("pred", "peaks"),
            PeaksToDyadsd("pred"),
            mt.Invertd("pred", transforms, orig_keys="image", nearest_interp=False, to_tensor=True),
            DyadsToPeaksd("pred"),
        ]
    )
    pred = post(after)["pred"]
    torch.testing.assert_close(pred.affine, item["image"].affine)
    assert pred.shape[1:] == item["image"].shape[1:]
    inner = tuple([slice(8, -8)] * 3)
    error = axial_degrees(last(pred)[inner], last(peaks_of(item["image"]))[inner])
    assert error.max() < 1.0


def test_signed_vectors_cancel_when_inverted():
    """The control: why directions are inverted as dyads."""
    item = field_item("oblique", "aniso", (24, 26, 22))
    transforms = pipeline()
    transforms.transforms[2].set_random_state(0)
    after = transforms(item)
    image = after["image"]
    sign = torch.where(
        torch.rand(1, *image.shape[1:], generator=torch.Generator().manual_seed(0)) > 0.5, 1.0, -1.0
    )
    after["pred"] = MetaTensor(
        peaks_of(image).as_tensor() * sign, meta=image.meta, applied_operations=image.applied_operations
    )
    pred = mt.Invertd("pred", transforms, orig_keys="image", nearest_interp=False)(after)["pred"]
    inner = tuple([slice(8, -8)] * 3)
    assert float(pred.as_tensor()[(slice(None), *inner)].norm(dim=0).median()) < 0.7


@pytest.mark.parametrize(("orientation", "swapped"), [("RAS", False), ("LAS", True), ("PLS", True)])
def test_left_and_right_are_swapped_on_a_mirrored_grid_only(orientation, swapped):
    image = field_item(orientation, "iso", (4, 4, 4))["image"]
    label = MetaTensor(torch.randint(0, 4, (1, 4, 4, 4)), affine=image.affine)
    out = SwapLeftRightd("label", [(1, 2)])({"label": label})["label"].as_tensor()
    table = torch.tensor([0, 2, 1, 3] if swapped else [0, 1, 2, 3])
    torch.testing.assert_close(out, table[label.as_tensor()])


def test_a_flip_makes_left_look_right():
    image = field_item("RAS", "iso", (6, 4, 4))["image"]
    data = torch.ones(1, 6, 4, 4)
    data[:, 3:] = 2.0
    item = {"label": MetaTensor(data, affine=image.affine)}
    out = SwapLeftRightd("label", [(1, 2)])(mt.Flipd("label", 0)(item))["label"]
    torch.testing.assert_close(out.as_tensor(), data)


def test_pairs_must_be_different_classes():
    with pytest.raises(ValueError, match="different classes"):
        SwapLeftRightd("label", [(1, 2), (2, 3)])


def test_spread_directions_are_as_even_as_those_of_dipy():
    from dipy.core.sphere import HemiSphere, disperse_charges

    start = HemiSphere(xyz=np.random.default_rng(0).normal(size=(30, 3)))
    theirs = torch.tensor(disperse_charges(start, 2000)[0].vertices)

    def smallest_angle(points: torch.Tensor) -> float:
        cosine = (points @ points.T).abs() - torch.eye(len(points))
        return float(torch.rad2deg(torch.acos(cosine.max())))

    assert smallest_angle(spread_directions(30)) > 0.95 * smallest_angle(theirs)


def test_a_subset_covers_the_sphere_better_than_a_random_one():
    points = spread_directions(90)
    chosen = points[spread_subset(points, 15, first=3)]
    random = points[torch.randperm(90, generator=torch.Generator().manual_seed(0))[:15]]

    def closest(p: torch.Tensor) -> float:
        return float(((p @ p.T).abs() - torch.eye(15)).max())

    assert closest(chosen) < closest(random) - 0.05
    assert len(set(spread_subset(points, 15, 3).tolist())) == 15


def test_principal_direction_of_a_dyad_is_the_direction():
    v = torch.nn.functional.normalize(torch.randn(3, 5, 1, 1, dtype=torch.float64), dim=0)
    assert axial_degrees(last(tensor_metrics(peaks_to_dyads(v)[None]).v1[0]), last(v)).max() < 1e-3


def test_plain_tensors_become_dyads_and_back():
    peaks = torch.randn(6, 3, 3, 3)
    item = DyadsToPeaksd("peaks")(PeaksToDyadsd("peaks")({"peaks": peaks}))
    assert type(item["peaks"]) is torch.Tensor
    for n in (slice(0, 3), slice(3, 6)):
        assert axial_degrees(last(item["peaks"][n]), last(peaks[n])).max() < 0.1


@pytest.mark.parametrize(
    "transform", [DirectionsToVoxelFramed, DirectionsToWorldFramed], ids=["voxel", "world"]
)
def test_an_unknown_kind_is_an_error_at_once(transform):
    with pytest.raises(ValueError, match=r"kind must be one of .* got 'peak'"):
        transform("peaks", kind="peak")


def test_a_lambda_on_peaks_is_refused_unless_allowed():
    item = mt.Lambdad("peaks", lambda x: x[:3])(with_peaks())
    with pytest.raises(ValueError, match="Lambdad? was applied"):
        DirectionsToVoxelFramed("peaks")(item)
    DirectionsToVoxelFramed("peaks", allow_lambda=True)(item)
