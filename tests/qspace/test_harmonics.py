from __future__ import annotations

import numpy as np
import pytest
import torch
from e3nn import o3

from dmri_monai.qspace.harmonics import harmonic_irreps, signal_to_harmonics
from dmri_monai.qspace.irreps_rotation import rotate_irreps, rotate_voxelwise
from dmri_monai.qspace.shell_fit import ShellFit, sh_fit_matrix, sh_orders
from dmri_monai.so3 import n_coefficients, representation_matrix, sh_basis
from tests.transforms.fields import directions, stick_signal


def unit(n: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(directions(n, seed))


def scan(n: int = 30, seed: int = 0, b: float = 1000.0, shape: tuple[int, ...] = (4, 3, 2)):
    """One noise-free item with a fibre direction per voxel: image (1, N, X, Y, Z), bvals, bvecs."""
    fibres = np.random.default_rng(5).normal(size=(*shape, 3))
    fibres /= np.linalg.norm(fibres, axis=-1, keepdims=True)
    bvals, bvecs = np.r_[0.0, np.full(n, b)], np.r_[np.zeros((1, 3)), directions(n, seed)]
    image = torch.tensor(stick_signal(fibres, bvals, bvecs), dtype=torch.float32)
    return image[None], torch.tensor(bvals)[None], torch.tensor(bvecs)[None]


def test_basis_is_orthonormal_on_the_sphere():
    points = torch.tensor(np.random.default_rng(0).normal(size=(200_000, 3)))
    basis = sh_basis(points, 4)
    gram = basis.T @ basis * (4 * np.pi / len(points))
    torch.testing.assert_close(gram, torch.eye(15, dtype=torch.float64), atol=0.02, rtol=0)


def test_basis_is_that_of_e3nn_in_order():
    expected = o3.spherical_harmonics("0e+2e+4e", unit(20), normalize=True, normalization="integral")
    torch.testing.assert_close(sh_basis(unit(20), 4), expected)


def test_fit_recovers_a_band_limited_signal():
    coefficients = torch.randn(15, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    signal = sh_basis(unit(30), 4) @ coefficients
    torch.testing.assert_close(sh_fit_matrix(unit(30), 4, smoothing=0.0) @ signal, coefficients)


@pytest.mark.parametrize("n", [64, 128, 256])
def test_damping_of_an_order_does_not_depend_on_the_number_of_directions(n):
    coefficients = torch.ones(15, dtype=torch.float64)
    fitted = sh_fit_matrix(unit(n), 4, smoothing=1e-3) @ (sh_basis(unit(n), 4) @ coefficients)
    orders = sh_orders(4)
    torch.testing.assert_close(
        fitted, 1 / (1 + 1e-3 * (orders * (orders + 1)).double() ** 2), atol=0.02, rtol=0
    )


@pytest.mark.parametrize("mirror", [1.0, -1.0], ids=["rotation", "mirrored"])
def test_fit_then_wigner_rotation_equals_rotation_then_fit(mirror):
    rotation = o3.rand_matrix(dtype=torch.float64) * mirror
    signal = torch.rand(45, dtype=torch.float64)
    turned = sh_fit_matrix(unit(45) @ rotation.T, 4) @ signal
    fitted = sh_fit_matrix(unit(45), 4) @ signal
    torch.testing.assert_close(
        representation_matrix("0e+2e+4e", rotation) @ fitted, turned, atol=1e-9, rtol=0
    )


def test_rotating_coefficients_rotates_the_function():
    rotation, coefficients = o3.rand_matrix(dtype=torch.float64), torch.randn(15, dtype=torch.float64)
    turned = rotate_irreps(coefficients.view(1, 15, 1, 1, 1), "0e+2e+4e", rotation).flatten()
    points = unit(50)
    expected = sh_basis(points @ rotation, 4) @ coefficients
    torch.testing.assert_close(sh_basis(points, 4) @ turned, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("l_max", [2, 4, 6])
def test_voxelwise_rotation_agrees_with_wigner_matrices(l_max):
    rotations = o3.rand_matrix(7, dtype=torch.float64)
    coefficients = torch.randn(n_coefficients(l_max), 7, dtype=torch.float64)
    irreps = "+".join(f"{order}e" for order in range(0, l_max + 1, 2))
    expected = [representation_matrix(irreps, r) @ c for r, c in zip(rotations, coefficients.T, strict=True)]
    turned = rotate_voxelwise(coefficients, rotations, l_max)
    torch.testing.assert_close(turned, torch.stack(expected, dim=1), atol=1e-9, rtol=0)


def test_a_weight_of_zero_removes_a_measurement():
    signal = torch.rand(40, dtype=torch.float64)
    weights = torch.cat([torch.ones(32), torch.zeros(8)]).double()
    all_rows = sh_fit_matrix(unit(40), 4, weights) @ signal
    torch.testing.assert_close(all_rows, sh_fit_matrix(unit(40)[:32], 4) @ signal[:32])


def test_channels_are_b0_then_shells_grouped_by_order():
    image, bvals, bvecs = scan(64)
    _, _, second = scan(45, seed=1, b=2000.0)
    more = scan(45, seed=1, b=2000.0)[0][:, 1:]
    image, bvals = torch.cat([image, more], 1), torch.cat([bvals, torch.full((1, 45), 2000.0)], 1)
    bvecs = torch.cat([bvecs, second[:, 1:]], 1)
    both = signal_to_harmonics(image, bvals, bvecs, shells=[1000, 2000], l_max=4)
    low = signal_to_harmonics(image[:, :65], bvals[:, :65], bvecs[:, :65], shells=[1000], l_max=4)
    assert both.shape[1] == o3.Irreps(harmonic_irreps(2, 4)).dim == 31
    torch.testing.assert_close(both[:, [0, 1, *range(3, 8), *range(13, 22)]], low)


def test_b0_channel_is_one_at_the_median_and_keeps_the_contrast():
    image, bvals, bvecs = scan()
    image[..., 0] *= 3.0
    b0 = signal_to_harmonics(image, bvals, bvecs, shells=[1000])[:, 0]
    torch.testing.assert_close(b0[..., 0] / b0[..., 1], torch.full((1, 4, 3), 3.0))
    assert 1.0 in b0


def test_first_coefficient_is_the_spherical_mean_of_the_normalised_signal():
    image, bvals, bvecs = scan(64)
    channels = signal_to_harmonics(image * 7.0, bvals, bvecs, shells=[1000])
    mean = image[:, 1:].mean(1) / image[:, 0]
    torch.testing.assert_close(channels[:, 1], mean * (4 * np.pi) ** 0.5, rtol=1e-2, atol=0)


def test_number_of_directions_hardly_changes_the_channels():
    many, few = (signal_to_harmonics(*scan(n, seed=n), shells=[1000]) for n in (200, 30))
    assert (many - few).norm() / many.norm() < 0.005


def test_padded_rows_count_for_nothing_whatever_they_hold():
    image, bvals, bvecs = scan()
    expected = signal_to_harmonics(image, bvals, bvecs, shells=[1000])
    rows = torch.nn.functional.pad(torch.ones(1, 31, dtype=torch.bool), (0, 9))
    padded = torch.cat([image, torch.full((1, 9, *image.shape[2:]), torch.nan)], dim=1)
    bvals, bvecs = (torch.cat([t, t.new_zeros(1, 9, *t.shape[2:])], 1) for t in (bvals, bvecs))
    torch.testing.assert_close(signal_to_harmonics(padded, bvals, bvecs, shells=[1000], mask=rows), expected)


def test_items_of_a_batch_use_their_own_tables():
    first, second = scan(30, seed=0), scan(30, seed=9)
    batch = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    expected = torch.cat([signal_to_harmonics(*one, shells=[1000]) for one in (first, second)])
    torch.testing.assert_close(signal_to_harmonics(*batch, shells=[1000]), expected)


def test_background_and_nan_give_zero():
    image, bvals, bvecs = scan()
    image[:, :, 0, 0, 0], image[:, :, 1, 0, 0] = 0.0, torch.nan
    channels = signal_to_harmonics(image, bvals, bvecs, shells=[1000])
    assert channels.isfinite().all()
    assert channels[:, :, :2, 0, 0].abs().max() == 0


def test_shell_is_found_under_jitter():
    image, bvals, bvecs = scan()
    jittered = bvals * torch.linspace(0.96, 1.04, 31)
    expected = signal_to_harmonics(image, bvals, bvecs, shells=[1000])
    torch.testing.assert_close(signal_to_harmonics(image, jittered, bvecs, shells=[1000]), expected)


def test_missing_shell_is_an_error_that_lists_the_b_values():
    with pytest.raises(ValueError, match=r"shell b = 2000.*b-values: \[0, 1000\]"):
        signal_to_harmonics(*scan(), shells=[1000, 2000])


def test_missing_shell_can_be_zero_with_a_presence_channel():
    fit = ShellFit(missing="zero")
    channels = signal_to_harmonics(*scan(), shells=[1000, 2000], fit=fit)
    assert channels.shape[1] == o3.Irreps(harmonic_irreps(2, 4, presence=True)).dim
    assert channels[0, 3:5, 0, 0, 0].tolist() == [1.0, 0.0]
    assert channels[:, 2].abs().max() == 0
    assert channels[:, 10:15].abs().max() == 0
    assert channels[:, 5:10].abs().max() > 0


def test_too_few_directions_are_an_error_that_says_how_many_are_needed():
    with pytest.raises(ValueError, match=r"shell b = 1000: 12 directions .* order 2.*at least 15"):
        signal_to_harmonics(*scan(12), shells=[1000])


def test_antipodal_copies_do_not_count_as_directions():
    image, bvals, bvecs = scan(12)
    twice = [torch.cat([t, t[:, 1:] * sign], 1) for t, sign in ((image, 1), (bvals, 1), (bvecs, -1))]
    with pytest.raises(ValueError, match=r"order 2.*at least 15 different"):
        signal_to_harmonics(*twice, shells=[1000])


def test_too_few_directions_can_leave_high_orders_zero():
    channels = signal_to_harmonics(*scan(12), shells=[1000], fit=ShellFit(too_few="zero"))
    assert channels.shape[1] == 16
    assert channels[:, 7:].abs().max() == 0
    assert channels[:, 2:7].abs().max() > 0


def test_scan_without_b0_is_an_error():
    image, bvals, bvecs = scan()
    with pytest.raises(ValueError, match=r"no b0 volume: lowest b is 1000, above b0_threshold 50$"):
        signal_to_harmonics(image[:, 1:], bvals[:, 1:], bvecs[:, 1:], shells=[1000])


@pytest.mark.parametrize("shells", [[], [2000, 1000], [0.0], [1000, 1000]], ids=str)
def test_shells_must_ascend(shells):
    with pytest.raises(ValueError, match="ascending"):
        signal_to_harmonics(*scan(), shells=shells)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu():
    expected = signal_to_harmonics(*scan(), shells=[1000])
    on_gpu = signal_to_harmonics(*(t.cuda() for t in scan()), shells=[1000])
    torch.testing.assert_close(on_gpu.cpu(), expected, atol=1e-5, rtol=1e-5)
