"""Effects of displacement along phase encoding: where signal goes, and that none of it is lost."""

import math

import pytest
import torch

from dmri_monai.artifacts import displace, eddy, fat_shift, susceptibility, susceptibility_field

D = torch.float64


def centre_of_mass(image, axis=1):
    """(N,) centre of mass along spatial `axis`, in voxels."""
    weight = image.sum([d for d in (1, 2, 3) if d != axis + 1])
    return (weight * torch.arange(image.shape[axis + 1], dtype=image.dtype)).sum(-1) / weight.sum(-1)


def smooth_head(shape=(2, 20, 48, 16)):
    """Blob well inside the grid: nothing leaves it by a few voxels of shift."""
    axes = [torch.linspace(-1, 1, n, dtype=D) for n in shape[1:]]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return (
        torch.exp(-((x / 0.3) ** 2 + (y / 0.2) ** 2 + (z / 0.3) ** 2)).clamp(min=1e-6).sub(1e-6).expand(shape)
    )


def test_susceptibility_keeps_the_signal_of_every_line():
    image = smooth_head()
    field = susceptibility_field((20, 48, 16), (4.0, 4.0, 4.0), peak_hz=150.0).to(D)
    warped = susceptibility(image, field_hz=field, axis=1, total_readout_time_s=0.05)
    assert float((warped - image).abs().max()) > 0.1
    torch.testing.assert_close(warped.sum(2), image.sum(2))


def test_folded_signal_piles_up_and_is_kept():
    image = torch.zeros(1, 1, 40, 1, dtype=D)
    image[:, :, 10:30] = 1.0
    shift = torch.zeros(1, 40, 1, dtype=D)
    shift[:, 15:20] = 4.0  # overtakes the voxels behind it
    warped = displace(image, axis=1, shift=shift)
    assert float(warped.max()) > 1.5
    assert float(warped.sum()) == pytest.approx(20.0, rel=1e-3)


def test_uniform_field_shifts_by_field_times_readout_time():
    image = smooth_head()
    warped = susceptibility(image, field_hz=torch.full((20, 48, 16), 60.0), axis=1, total_readout_time_s=0.05)
    torch.testing.assert_close(centre_of_mass(warped) - centre_of_mass(image), torch.full((2,), 3.0, dtype=D))
    torch.testing.assert_close(warped[:, :, 3:], image[:, :, :-3])


def test_constant_fractional_shift_is_linear_interpolation():
    image = torch.rand(2, 3, 20, 4, dtype=D)
    warped = displace(image, axis=1, shift=torch.full((3, 20, 4), 0.3, dtype=D))
    torch.testing.assert_close(warped[:, :, 1:], 0.7 * image[:, :, 1:] + 0.3 * image[:, :, :-1])


def test_stretching_divides_the_intensity_by_the_jacobian():
    image = torch.ones(1, 2, 60, 2, dtype=D)
    y = torch.arange(60, dtype=D) - 29.5
    stretched = displace(image, axis=1, shift=(0.25 * y).view(1, 60, 1).expand(2, 60, 2))
    torch.testing.assert_close(stretched[:, :, 20:40], torch.full((1, 2, 20, 2), 1 / 1.25, dtype=D))
    squeezed = displace(image, axis=1, shift=(-0.25 * y).view(1, 60, 1).expand(2, 60, 2))
    torch.testing.assert_close(squeezed[:, :, 20:40], torch.full((1, 2, 20, 2), 1 / 0.75, dtype=D))


def test_opposite_polarity_shifts_the_other_way():
    image = smooth_head()
    field = torch.full((20, 48, 16), 40.0)
    moved = [
        centre_of_mass(susceptibility(image, field_hz=field, axis=1, total_readout_time_s=0.05, polarity=p))
        - centre_of_mass(image)
        for p in (1, -1)
    ]
    torch.testing.assert_close(moved[0], -moved[1])
    assert float(moved[0][0]) == pytest.approx(2.0)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["x", "y", "z"])
def test_displacement_is_along_its_axis_only(axis):
    image = torch.zeros(1, 15, 15, 15, dtype=D)
    image[0, 7, 7, 7] = 1.0
    moved = displace(image, axis=axis, shift=torch.full((15, 15, 15), 2.0, dtype=D))
    place = [0, 7, 7, 7]
    place[axis + 1] = 9
    assert torch.nonzero(moved > 1e-9).tolist() == [place]


def test_signal_leaves_the_grid_at_its_end():
    image = torch.ones(1, 1, 10, 1, dtype=D)
    moved = displace(image, axis=1, shift=torch.full((1, 10, 1), 4.0, dtype=D))
    torch.testing.assert_close(moved.flatten(), torch.tensor([0.0] * 4 + [1.0] * 6, dtype=D))


def eddy_of(image, bvals, bvecs, coefficients):
    return eddy(
        image,
        bvals=torch.tensor(bvals, dtype=D),
        bvecs_voxel=torch.tensor(bvecs, dtype=D),
        coefficients_hz=coefficients,
        axis=1,
        total_readout_time_s=0.05,
        b_reference=1000.0,
    )


def test_eddy_displacement_is_linear_in_b_times_g_and_zero_for_b0():
    image = smooth_head((5, 20, 48, 16))
    coefficients = torch.zeros(4, 3, dtype=D)
    coefficients[0] = torch.tensor([40.0, -20.0, 10.0])
    half = math.sqrt(0.5)
    bvecs = [[0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 1, 0], [half, half, 0]]
    moved = eddy_of(image, [0.0, 500.0, 1000.0, 1000.0, 2000.0], bvecs, coefficients)
    expected = torch.tensor([0.0, 1.0, 2.0, -1.0, 2 * half * (2 - 1)], dtype=D)
    torch.testing.assert_close(centre_of_mass(moved) - centre_of_mass(image), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moved[0], image[0])


def test_eddy_of_the_opposite_gradient_is_opposite():
    image = smooth_head((2, 20, 48, 16))
    coefficients = torch.zeros(10, 3, dtype=D)
    coefficients[1:, 0] = 20.0
    moved = eddy_of(image, [1000.0, 1000.0], [[1, 0, 0], [-1, 0, 0]], coefficients)
    shift = centre_of_mass(moved) - centre_of_mass(image)
    assert abs(float(shift[0])) > 0.1
    torch.testing.assert_close(shift[0], -shift[1], rtol=0.02, atol=1e-3)


def test_linear_eddy_mode_scales_the_image_along_phase_encoding():
    image = torch.ones(1, 2, 61, 2, dtype=D)
    coefficients = torch.zeros(4, 3, dtype=D)
    coefficients[2, 0] = 60.0  # y: +- 3 voxels at the ends of 30 voxels on either side
    moved = eddy_of(image, [1000.0], [[1, 0, 0]], coefficients)
    torch.testing.assert_close(moved[:, :, 20:40], torch.full((1, 2, 20, 2), 1 / 1.1, dtype=D))


def test_quadratic_eddy_mode_shifts_the_edge_and_not_the_centre():
    image = torch.zeros(1, 31, 31, 1, dtype=D)
    image[0, 15, 15], image[0, 30, 15] = 1.0, 1.0
    coefficients = torch.zeros(10, 3, dtype=D)
    coefficients[4, 2] = 40.0  # x^2
    moved = eddy_of(image, [1000.0], [[0, 0, 1]], coefficients)
    assert torch.nonzero(moved[..., 0] > 0.5).tolist() == [[0, 15, 15], [0, 30, 17]]


def test_sum_of_shifts_acts_as_one_field():
    image = smooth_head()
    shift = torch.full((20, 48, 16), 1.5, dtype=D)
    modes = torch.zeros(2, 4, dtype=D)
    modes[:, 0] = torch.tensor([0.5, -1.5])
    moved = displace(image, axis=1, shift=shift, modes=modes)
    torch.testing.assert_close(moved[0, :, 2:], image[0, :, :-2])
    torch.testing.assert_close(moved[1], image[1])


@pytest.mark.parametrize(
    ("shift", "place"), [(5.0, 9), (-6.0, 18), (22.0, 6)], ids=["ahead", "wrapped-back", "wrapped"]
)
def test_fat_appears_at_its_shift_and_wraps(shift, place):
    fat = torch.zeros(1, 20, 1, dtype=D)
    fat[0, 4] = 2.0
    moved = fat_shift(torch.zeros(3, 1, 20, 1, dtype=D), fat=fat, shift_voxels=shift, axis=1)
    assert torch.nonzero(moved[1]).tolist() == [[0, place, 0]]
    torch.testing.assert_close(moved.sum((1, 2, 3)), torch.full((3,), 2.0, dtype=D))


def test_field_of_an_air_cavity_is_largest_beside_it_and_reaches_its_peak():
    field = susceptibility_field((40, 48, 36), (4.0, 4.0, 4.0), peak_hz=120.0)
    assert float(field.abs().max()) == pytest.approx(120.0)
    near = field[:, 24:, :18].abs().mean()  # front, below: the sinuses
    far = field[:, :24, 18:].abs().mean()
    assert float(near) > 4 * float(far)


def test_field_of_an_air_cavity_is_smooth():
    field = susceptibility_field((40, 48, 36), (4.0, 4.0, 4.0), peak_hz=120.0)
    for dim in range(3):
        assert float(field.diff(dim=dim).abs().max()) < 0.5 * 120.0


@pytest.mark.parametrize(
    "identity",
    [
        lambda x: susceptibility(x, field_hz=torch.zeros(20, 48, 16), axis=1, total_readout_time_s=0.05),
        lambda x: eddy_of(x, [1000.0] * 2, [[1, 0, 0]] * 2, torch.zeros(10, 3)),
        lambda x: fat_shift(x, fat=torch.zeros(20, 48, 16), shift_voxels=3.3, axis=1),
        lambda x: displace(x, axis=2),
    ],
    ids=["susceptibility", "eddy", "fat", "none"],
)
def test_zero_strength_is_the_identity(identity):
    image = smooth_head()
    torch.testing.assert_close(identity(image), image, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"field_hz": torch.zeros(4, 4, 5)}, r"field_hz has shape \(4, 4, 5\), expected \(4, 4, 4\)"),
        ({"axis": 3}, "axis is 3"),
        ({"total_readout_time_s": -0.1}, "total_readout_time_s is -0.1"),
        ({"polarity": 0}, "polarity is 0"),
        ({"field_hz": torch.full((4, 4, 4), math.nan)}, "field_hz is nan"),
    ],
    ids=["shape", "axis", "time", "polarity", "nan"],
)
def test_bad_parameters_are_named(change, message):
    good = {"field_hz": torch.zeros(4, 4, 4), "axis": 1, "total_readout_time_s": 0.05}
    with pytest.raises(ValueError, match=message):
        susceptibility(torch.ones(2, 4, 4, 4), **(good | change))


def test_eddy_coefficients_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"coefficients_hz has shape \(5, 3\)"):
        eddy_of(torch.ones(1, 4, 4, 4), [1000.0], [[1, 0, 0]], torch.zeros(5, 3))


def test_displacement_is_differentiable_in_image_and_field():
    generator = torch.Generator().manual_seed(0)
    image = (torch.rand(2, 2, 6, 2, dtype=D, generator=generator) + 0.5).requires_grad_()
    shift = (torch.rand(2, 6, 2, dtype=D, generator=generator) * 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda i, s: displace(i, axis=1, shift=s), (image, shift))
