"""The axial loss against angles, e3nn's rotations and numerical derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from e3nn import o3

from dmri_monai.losses import AxialLoss
from dmri_monai.qspace.axes import axis_to_harmonics

GENERATOR = torch.Generator().manual_seed(0)
AXES = torch.nn.functional.normalize(
    torch.randn(2, 3, 3, 4, 5, dtype=torch.float64, generator=GENERATOR), dim=1
)
CHANNELS = {"vector": 3, "l2": 5}


def volume(*vector: float) -> torch.Tensor:
    return torch.tensor(vector, dtype=torch.float64).view(1, -1, 1, 1, 1)


def at_angle(degrees: float) -> torch.Tensor:
    return volume(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), 0.0)


def as_output(axes: torch.Tensor, output: str) -> torch.Tensor:
    return axes if output == "vector" else axis_to_harmonics(axes)


def prediction(output: str) -> torch.Tensor:
    return torch.randn(
        2, CHANNELS[output], 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )


@pytest.mark.parametrize("output", ["vector", "l2"])
@pytest.mark.parametrize("degrees", [0.0, 0.01, 10.0, 45.0, 89.99, 90.0, 135.0, 180.0])
def test_loss_of_an_axis_is_the_squared_sine_of_its_angle(output, degrees):
    loss = AxialLoss(output, epsilon=1e-9)(3 * as_output(at_angle(degrees), output), at_angle(0.0))
    torch.testing.assert_close(float(loss), math.sin(math.radians(degrees)) ** 2, atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize("output", ["vector", "l2"])
def test_sign_of_the_label_does_not_matter(output):
    loss = AxialLoss(output)
    torch.testing.assert_close(loss(prediction(output), AXES), loss(prediction(output), -AXES))


def test_sign_of_a_predicted_vector_does_not_matter():
    loss = AxialLoss("vector")
    torch.testing.assert_close(loss(prediction("vector"), AXES), loss(-prediction("vector"), AXES))


def test_a_disc_is_not_taken_for_an_axis():
    assert AxialLoss("l2")(-axis_to_harmonics(AXES), AXES) > 1.3


def test_mean_squared_error_would_depend_on_the_sign():
    error = torch.nn.functional.mse_loss
    assert (error(prediction("vector"), AXES) - error(prediction("vector"), -AXES)).abs() > 0.01


@pytest.mark.parametrize("output", ["vector", "l2"])
@pytest.mark.parametrize("mirror", [1.0, -1.0], ids=["rotation", "with-mirror"])
def test_loss_is_invariant_when_prediction_and_label_turn_together(output, mirror):
    angles = torch.tensor([0.7, 1.1, -0.4], dtype=torch.float64)
    rotation = mirror * o3.angles_to_matrix(*angles)
    irreps = o3.Irreps("1o" if output == "vector" else "2e")
    turned = torch.einsum("ij,bjxyz->bixyz", irreps.D_from_matrix(rotation), prediction(output))
    labels = torch.einsum("ij,bjxyz->bixyz", rotation, AXES)
    loss = AxialLoss(output)
    torch.testing.assert_close(loss(turned, labels), loss(prediction(output), AXES))
    assert (loss(prediction(output), labels) - loss(prediction(output), AXES)).abs() > 1e-3  # the control


@pytest.mark.parametrize("output", ["vector", "l2"])
def test_gradient_is_that_of_finite_differences(output):
    loss = AxialLoss(output)
    torch.autograd.gradcheck(lambda p: loss(p, AXES), prediction(output).requires_grad_())


@pytest.mark.parametrize("output", ["vector", "l2"])
@pytest.mark.parametrize("degrees", [0.0, 1e-4, 90.0, 90.0 - 1e-4])
def test_gradient_in_single_precision_is_right_at_0_and_90_degrees(output, degrees):
    gradients = []
    for dtype in (torch.float32, torch.float64):
        pred = as_output(at_angle(degrees), output).to(dtype).requires_grad_()
        AxialLoss(output)(pred, at_angle(0.0).to(dtype)).backward()
        gradients.append(pred.grad.double())
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("output", ["vector", "l2"])
def test_gradient_descent_turns_an_axis_from_89_degrees_to_the_label(output):
    pred = as_output(at_angle(89.0), output).clone().requires_grad_()
    optimizer = torch.optim.Adam([pred], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = AxialLoss(output)(pred, at_angle(0.0))
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < math.sin(math.radians(2.0)) ** 2


@pytest.mark.parametrize(("output", "expected"), [("vector", 1.0), ("l2", 2 / 3)])
def test_zero_prediction_has_a_finite_gradient_and_the_loss_of_no_decision(output, expected):
    pred = torch.zeros(1, CHANNELS[output], 1, 1, 1, requires_grad=True)
    loss = AxialLoss(output)(pred, at_angle(0.0).float())
    loss.backward()
    torch.testing.assert_close(float(loss.detach()), expected)
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize("nothing", [0.0, float("nan")], ids=["zero", "nan"])
def test_voxels_without_a_label_count_for_nothing(nothing):
    labels, pred = AXES.clone(), prediction("vector").requires_grad_()
    labels[:, :, 0] = nothing
    loss = AxialLoss("vector")(pred, labels)
    torch.testing.assert_close(loss, AxialLoss("vector")(pred[:, :, 1:], AXES[:, :, 1:]))
    loss.backward()
    assert pred.grad[:, :, 0].abs().max() == 0


def test_voxels_outside_the_mask_count_for_nothing():
    mask = torch.ones(2, 1, 3, 4, 5)
    mask[..., 0] = 0
    pred = prediction("l2")
    expected = AxialLoss("l2")(pred[..., 1:], AXES[..., 1:])
    torch.testing.assert_close(AxialLoss("l2")(pred, AXES, mask), expected)


def test_of_several_peaks_the_first_is_the_label():
    peaks = torch.cat([0.4 * AXES, torch.full_like(AXES, torch.nan)], dim=1)
    pred = prediction("vector")
    torch.testing.assert_close(AxialLoss()(pred, peaks), AxialLoss()(pred, AXES))


def test_no_label_at_all_gives_zero_and_a_zero_gradient():
    pred = prediction("vector").requires_grad_()
    loss = AxialLoss("vector")(pred, torch.zeros_like(AXES))
    loss.backward()
    assert loss == 0
    assert pred.grad.abs().max() == 0


def test_half_precision_predictions_are_compared_in_single_precision():
    pred = prediction("l2").bfloat16()
    loss = AxialLoss("l2")(pred, AXES.float())
    torch.testing.assert_close(loss, AxialLoss("l2")(pred.float(), AXES.float()))


def test_wrong_channels_raise_with_both_shapes():
    with pytest.raises(
        ValueError, match=r"l2 prediction has shape \(2, 3, 3, 4, 5\), expected \(2, 5, 3, 4, 5\)"
    ):
        AxialLoss("l2")(prediction("vector"), AXES)


def test_labels_of_another_grid_raise_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 4, 4\), expected \(2, 3, 3, 4, 5\)"):
        AxialLoss()(prediction("vector"), AXES[..., 1:])
