"""Effects of signal changes: drift, dropout, bias, venetian blind, vibration."""

import math

import pytest
import torch

from dmri_monai.artifacts import (
    bias_field,
    drift,
    multiband_set,
    polynomial_field,
    slice_dropout,
    venetian_blind,
    vibration,
)
from dmri_monai.artifacts.magnitudes import check_magnitude


@pytest.fixture
def image():
    return torch.rand(6, 7, 8, 12, generator=torch.Generator().manual_seed(0)) + 1.0


def test_linear_drift_falls_on_a_line_of_the_given_slope(image):
    ratio = drift(image, fraction=0.06, order=1) / image
    expected = 1 - 0.06 * torch.arange(6) / 5
    torch.testing.assert_close(ratio.mean((1, 2, 3)), expected)


def test_quadratic_drift_loses_a_quarter_at_half_time(image):
    ratio = (drift(image, fraction=0.04, position=torch.full((6,), 0.5)) / image).mean()
    assert float(ratio) == pytest.approx(1 - 0.04 / 4, rel=1e-6)


def test_drift_is_the_same_everywhere_in_a_volume(image):
    ratio = drift(image, fraction=0.05) / image
    torch.testing.assert_close(ratio, ratio.mean((1, 2, 3), keepdim=True).expand_as(ratio))


def test_dropout_hits_exactly_the_given_slice(image):
    dropped = slice_dropout(image, volumes=torch.tensor([2]), slices=torch.tensor([5]), loss=0.7)
    expected = image.clone()
    expected[2, :, :, 5] *= 0.3
    torch.testing.assert_close(dropped, expected)


def test_multiband_dropout_hits_the_whole_set_and_nothing_else(image):
    dropped = slice_dropout(image, volumes=torch.tensor([1]), slices=torch.tensor([6]), loss=1.0, multiband=3)
    changed = (dropped != image).any(1).any(1)
    assert torch.nonzero(changed).tolist() == [[1, 2], [1, 6], [1, 10]]
    assert float(dropped[1, :, :, [2, 6, 10]].abs().max()) == 0.0


def test_stronger_of_two_dropouts_on_one_slice_counts(image):
    dropped = slice_dropout(
        image, volumes=torch.tensor([0, 0]), slices=torch.tensor([3, 3]), loss=torch.tensor([0.8, 0.5])
    )
    torch.testing.assert_close(dropped[0, :, :, 3], 0.2 * image[0, :, :, 3])


def test_dropout_along_another_axis(image):
    dropped = slice_dropout(image, volumes=torch.tensor([4]), slices=torch.tensor([1]), loss=1.0, axis=0)
    assert torch.nonzero((dropped != image).any(-1).any(-1)).tolist() == [[4, 1]]


def test_dropout_numbers_the_volumes_of_a_batch_in_order(image):
    batch = image.view(2, 3, 7, 8, 12)
    dropped = slice_dropout(batch, volumes=torch.tensor([4]), slices=torch.tensor([0]), loss=1.0)
    assert torch.nonzero((dropped != batch).flatten(2).any(-1)).tolist() == [[1, 1]]


def test_multiband_factor_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match="multiband factor 5 does not divide the number of slices 12"):
        multiband_set(0, 5, 12)


def test_dropout_loss_above_one_is_named(image):
    with pytest.raises(ValueError, match="loss is 1.5"):
        slice_dropout(image, volumes=torch.tensor([0]), slices=torch.tensor([0]), loss=1.5)


def test_dropout_of_a_missing_volume_is_named(image):
    with pytest.raises(ValueError, match="volumes: 6 is outside 0 to 5"):
        slice_dropout(image, volumes=torch.tensor([6]), slices=torch.tensor([0]), loss=0.5)


def test_dropout_of_a_missing_slice_is_named(image):
    with pytest.raises(ValueError, match="slice 12 is outside 0 to 11"):
        slice_dropout(image, volumes=torch.tensor([0]), slices=torch.tensor([12]), loss=0.5)


def test_slice_axis_outside_the_grid_is_named(image):
    with pytest.raises(ValueError, match="axis is 3"):
        slice_dropout(image, volumes=torch.tensor([0]), slices=torch.tensor([0]), loss=0.5, axis=3)


def test_bias_field_cancels_in_the_ratio_to_b0(image):
    gain = polynomial_field(torch.linspace(-0.3, 0.3, 20).tolist(), (7, 8, 12), 3)
    biased = bias_field(image, log_gain=gain)
    torch.testing.assert_close(biased / biased[:1], image / image[:1])
    assert float((biased / image).std()) > 0.05


def test_bias_field_of_monai_is_reproduced_by_its_logarithm(image):
    transforms = pytest.importorskip("monai.transforms")
    theirs = transforms.RandBiasField(degree=3, coeff_range=(0.0, 0.3), prob=1.0).set_random_state(0)
    reference = torch.as_tensor(theirs(torch.ones(1, 7, 8, 12))).clone()
    torch.testing.assert_close(bias_field(image, log_gain=reference[0].log()), image * reference)


def test_bias_field_of_another_shape_is_refused(image):
    with pytest.raises(ValueError, match=r"log_gain has shape \(7, 8, 11\), expected \(7, 8, 12\)"):
        bias_field(image, log_gain=torch.zeros(7, 8, 11))


def test_venetian_blind_alternates_between_slices(image):
    ratio = (venetian_blind(image, strength=0.1) / image).mean((0, 1, 2))
    torch.testing.assert_close(ratio, torch.tensor([1.1, 0.9] * 6))


def test_vibration_hits_volumes_by_their_left_right_gradient(image):
    share = torch.tensor([0.0, 1.0, -1.0, 0.5, 0.0, 0.0])
    weight = torch.zeros(7, 8, 12)
    weight[3, 4, 5] = 1.0
    ratio = vibration(image, left_right=share, weight=weight, remaining=0.4) / image
    torch.testing.assert_close(ratio[:, 3, 4, 5], 1 - 0.6 * share**2)
    assert float((ratio[:, 0] - 1).abs().max()) == 0.0


@pytest.mark.parametrize(
    "identity",
    [
        lambda x: drift(x, fraction=0.0),
        lambda x: bias_field(x, log_gain=torch.zeros(7, 8, 12)),
        lambda x: venetian_blind(x, strength=0.0),
        lambda x: vibration(x, left_right=torch.ones(6), weight=torch.ones(7, 8, 12), remaining=1.0),
        lambda x: slice_dropout(x, volumes=torch.tensor([0]), slices=torch.tensor([0]), loss=0.0),
    ],
    ids=["drift", "bias", "blind", "vibration", "dropout"],
)
def test_zero_strength_is_the_identity(image, identity):
    torch.testing.assert_close(identity(image), image, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [math.nan, -1.0, math.inf], ids=["nan", "negative", "infinite"])
def test_bad_voxels_are_counted_and_located(image, bad):
    image[2, 1, 3, 4] = bad
    with pytest.raises(ValueError, match=r"image: 1 of 4032 voxels.*at \(2, 1, 3, 4\)"):
        drift(image, fraction=0.01)


def test_integer_images_are_refused():
    with pytest.raises(TypeError, match="torch.int64"):
        check_magnitude(torch.ones(3, 3, 3, dtype=torch.int64))


def test_signal_changes_are_differentiable():
    image = (torch.rand(3, 3, 4, 4, dtype=torch.float64) + 0.5).requires_grad_()
    gain = torch.rand(3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda i, g: drift(bias_field(i, log_gain=g), fraction=0.1), (image, gain)
    )
