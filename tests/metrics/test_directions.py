"""Errors of directions at known angles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from e3nn import o3

from dmri_monai.metrics import AngularError, PolarAngleError
from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.qspace.axes import axis_to_harmonics, axis_to_polar

AXES = torch.nn.functional.normalize(
    torch.randn(1, 3, 5, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1
)
NOISE = torch.randn(1, 3, 5, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
PRED = AXES + 0.2 * NOISE


def fan(*degrees: float) -> torch.Tensor:
    """One voxel a direction in the xy-plane, at these angles to x."""
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin(), 0 * angle]).view(1, 3, -1, 1, 1)


@pytest.mark.parametrize("degrees", [0.0, 1e-6, 5.0, 60.0, 90.0 - 1e-6, 90.0, 91.0, 175.0, 180.0])
def test_angle_between_axes_is_right_to_rounding(degrees):
    angle = axial_angle_deg(fan(degrees), 3 * fan(0.0)).item()
    np.testing.assert_allclose(angle, min(degrees, 180 - degrees), atol=1e-10)


def test_median_and_share_of_known_angles():
    row = AngularError()(fan(2, 8, 30, 175), fan(0, 0, 0, 0))
    np.testing.assert_allclose(row[0].numpy(), [(5 + 8) / 2, 0.75])


def test_median_is_that_of_numpy():
    cosine = (torch.nn.functional.normalize(PRED, dim=1) * AXES).sum(1).abs().clamp(max=1)
    expected = np.rad2deg(np.arccos(cosine.numpy()))
    row = AngularError()(PRED, AXES)
    np.testing.assert_allclose(row[0].numpy(), [np.median(expected), (expected < 10).mean()], rtol=1e-9)


def test_signs_and_lengths_of_axes_do_not_matter():
    torch.testing.assert_close(AngularError()(-3 * PRED, AXES), AngularError()(PRED, -AXES))


def test_harmonics_of_an_axis_have_its_error():
    torch.testing.assert_close(AngularError("l2")(axis_to_harmonics(PRED), AXES), AngularError()(PRED, AXES))


def test_turning_prediction_and_truth_together_leaves_the_error():
    rotation = o3.angles_to_matrix(*torch.tensor([0.7, 1.1, -0.4], dtype=torch.float64))
    turned = [torch.einsum("ij,bjxyz->bixyz", rotation, v) for v in (PRED, AXES)]
    torch.testing.assert_close(AngularError()(*turned), AngularError()(PRED, AXES))
    assert AngularError()(turned[0], AXES)[0, 0] > AngularError()(PRED, AXES)[0, 0] + 1  # the control


@pytest.mark.parametrize("nothing", [0.0, math.nan], ids=["zero", "nan"])
def test_voxels_without_a_true_peak_do_not_count(nothing):
    truth = AXES.clone()
    truth[:, :, 0] = nothing
    torch.testing.assert_close(AngularError()(PRED, truth), AngularError()(PRED[:, :, 1:], AXES[:, :, 1:]))


@pytest.mark.parametrize("nothing", [0.0, math.nan], ids=["zero", "nan"])
def test_a_missing_prediction_is_off_by_a_right_angle(nothing):
    row = AngularError()(torch.full_like(fan(0.0), nothing), fan(0.0))
    assert row.tolist() == [[90.0, 0.0]]


def test_voxels_outside_the_mask_do_not_count():
    mask = torch.ones(1, 1, 5, 6, 7)
    mask[..., 0] = 0
    torch.testing.assert_close(
        AngularError()(PRED, AXES, mask=mask), AngularError()(PRED[..., 1:], AXES[..., 1:])
    )


def test_a_subject_without_any_peak_is_nan():
    assert AngularError()(PRED, torch.zeros_like(AXES)).isnan().all()


def test_of_crossing_peaks_each_is_compared_with_the_nearest():
    truth = torch.cat([fan(0.0), fan(90.0), torch.full_like(fan(0.0), math.nan)], dim=1)
    swapped = torch.cat([fan(94.0), fan(8.0)], dim=1)
    metric = AngularError(peaks="all", limit_deg=5.0)
    np.testing.assert_allclose(metric(swapped, truth)[0].numpy(), [6.0, 0.5])
    np.testing.assert_allclose(AngularError()(swapped, truth)[0, 0].item(), 86.0)


def test_a_crossing_with_one_predicted_peak_misses_the_other():
    truth = torch.cat([fan(0.0), fan(90.0)], dim=1)
    np.testing.assert_allclose(AngularError(peaks="all")(fan(0.0), truth)[0].numpy(), [45.0, 0.5])


def test_aggregate_is_the_mean_over_subjects_of_the_reported_column():
    metric = AngularError(report="share_within")
    metric(fan(2, 30), fan(0, 0))
    metric(fan(2, 3), fan(0, 0))
    np.testing.assert_allclose(metric.aggregate().item(), 0.75)


def test_an_unknown_column_cannot_be_reported():
    with pytest.raises(ValueError, match="report is 'mean', expected one of"):
        AngularError(report="mean")


# --- published angles


def test_polar_error_of_known_angles():
    row = PolarAngleError()(fan(90.0, 36.0), fan(45.0, 36.0))  # phi off by 0.25 and 0, theta right
    np.testing.assert_allclose(row[0].numpy(), [0.25**2 / 4, 0.25 / 4])


def test_predicted_angles_and_predicted_directions_give_the_same_error():
    torch.testing.assert_close(PolarAngleError()(axis_to_polar(PRED), AXES), PolarAngleError()(PRED, AXES))


def test_polar_error_ignores_signs_but_not_where_the_frame_lies():
    near = fan(1.0), fan(179.0)  # 2 degrees apart, on both sides of the jump
    assert AngularError()(*near)[0, 0] < 2.01
    assert PolarAngleError()(*near)[0, 1] > 0.49
    torch.testing.assert_close(PolarAngleError()(-PRED, AXES), PolarAngleError()(PRED, AXES))


def test_wrong_number_of_angles_raises():
    with pytest.raises(ValueError, match="peaks have 4 channels"):
        PolarAngleError()(torch.zeros(1, 4, 5, 6, 7), AXES)
