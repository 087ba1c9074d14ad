"""What a single fibre looks like in a scan, and shells rescaled to the nominal fibre."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.special import eval_legendre
from torch.nn.functional import normalize
from torch.testing import assert_close

from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.shell_response import (
    NOMINAL,
    bundle_response,
    main_axes,
    nominal_response,
    response_factors,
    zonal_response,
)
from dmri_monai.qspace.shell_set import shell_channels, shell_set
from dmri_monai.so3 import sh_basis

SHELLS = (1000.0, 2500.0)
DIRECTIONS = 60
SLOTS = 3


def table() -> tuple[torch.Tensor, torch.Tensor]:
    directions = spread_directions(DIRECTIONS)
    bvals = torch.cat([torch.zeros(2), *(torch.full((DIRECTIONS,), b) for b in SHELLS)]).double()
    return bvals, torch.cat([torch.zeros(2, 3, dtype=torch.float64), directions, directions])


def fibre_signal(bvals: torch.Tensor, bvecs: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """(N, V) of cylinders along axes (V, 3), other than the nominal fibre."""
    b = (bvals / 1000).unsqueeze(1)
    return torch.exp(-0.35 * b) * torch.exp(-0.9 * b * (bvecs @ axes.T).square())


def head(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 12, 12, 12): grey all over, a bundle with an axis of its own in the middle, noise in air; and that axis."""
    generator = torch.Generator().manual_seed(seed)
    bvals, bvecs = table()
    axis = normalize(torch.randn(1, 3, generator=generator, dtype=torch.float64), dim=1)
    image = torch.exp(-0.8 * bvals / 1000).view(-1, 1, 1, 1).expand(-1, 12, 12, 12).clone()
    image[:, 3:8, 3:8, 3:8] = fibre_signal(bvals, bvecs, axis).view(-1, 1, 1, 1)
    image[:, 10:] = 0.02 * torch.rand(image[:, 10:].shape, generator=generator, dtype=torch.float64)
    return 700 * image, axis


def channels(image: torch.Tensor, response: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    bvals, bvecs = table()
    shells = shell_set(bvals, bvecs, slots=SLOTS)
    out = shell_channels(image, bvals, shells, response=response)  # type: ignore[arg-type]
    return torch.cat([out[1 : 1 + SLOTS], out[1 + 4 * SLOTS :]]), shells.bvals


def zonal_in_the_bundle(image: torch.Tensor, axis: torch.Tensor, response: str | None) -> torch.Tensor:
    found = channels(image, response)[0][:, 4:7, 4:7, 4:7].flatten(1)
    return zonal_response(found, SLOTS, axis.expand(27, 3))


@pytest.mark.parametrize("degree", [0, 2, 4, 6])
def test_nominal_response_is_the_integral_of_the_fibres_signal(degree):
    def signal(c: float, b: float) -> float:
        inside = math.exp(-b * NOMINAL.d_intra * c * c)
        across, along = NOMINAL.d_perpendicular, NOMINAL.d_parallel
        return NOMINAL.intra * inside + (1 - NOMINAL.intra) * math.exp(
            -b * (across + (along - across) * c * c)
        )

    found = nominal_response(torch.tensor([800.0, 2500.0]), 6)[:, degree // 2]
    for b, value in zip((0.8, 2.5), found.tolist(), strict=True):
        integral = quad(lambda c, b=b: signal(c, b) * eval_legendre(degree, c), -1, 1)[0]
        spread = math.exp(-degree * (degree + 1) / 2 * NOMINAL.spread)
        assert value == pytest.approx(math.sqrt(math.pi * (2 * degree + 1)) * integral * spread, rel=1e-6)


def test_the_axis_of_a_signal_is_that_of_its_fibre():
    axes = normalize(
        torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), dim=1
    )
    bvals, bvecs = table()
    fitted = shell_set(bvals, bvecs).matrix[0] @ fibre_signal(bvals, bvecs, axes)
    assert axial_angle_deg(main_axes(fitted[1:6]), axes).max() < 1.0
    assert axial_angle_deg(main_axes(-fitted[1:6]), axes).min() > 45.0  # where the signal is largest


def test_zonal_coefficients_do_not_depend_on_the_axis_and_give_the_signal_back():
    axes = normalize(
        torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), dim=1
    )
    bvals, bvecs = table()
    fitted = shell_set(bvals, bvecs, slots=1).matrix.flatten(0, 1) @ fibre_signal(bvals, bvecs, axes)
    first, second = (zonal_response(fitted[:, i : i + 1], 1, axes[i : i + 1])[0] for i in (0, 1))
    assert_close(first, second, atol=0.02, rtol=0)
    along = sum(
        value * math.sqrt((2 * degree + 1) / (4 * math.pi))
        for value, degree in zip(first.tolist(), (0, 2, 4, 6), strict=True)
    )
    assert along == pytest.approx(float(sh_basis(axes[:1], 6)[0] @ fitted[:, 0]), abs=0.03)


def test_the_coherent_bundle_is_found_and_becomes_the_nominal_fibre():
    image, axis = head()
    bvals = torch.tensor([*SHELLS, 0.0], dtype=torch.float64)
    nominal = nominal_response(bvals, 6)[:2].float()
    plain = zonal_in_the_bundle(image, axis, None)[:2]
    rescaled = zonal_in_the_bundle(image, axis, "scan")[:2]
    assert_close(rescaled[:, 1], nominal[:, 1], rtol=0.02, atol=0)
    assert_close(rescaled[1, 2], nominal[1, 2], rtol=0.05, atol=0)
    assert ((plain[:, 1] / nominal[:, 1] - 1).abs() > 0.05).all()  # it was another fibre
    assert_close(rescaled[:, 0], plain[:, 0])  # the mean stays


def test_rotations_of_the_scan_change_no_factor():
    """Array axes in another order and mirrored, gradients along with them."""
    image, _ = head()
    bvals, bvecs = table()
    moved = image.movedim((1, 2, 3), (2, 3, 1)).flip(1)
    turned = bvecs[:, [2, 0, 1]] * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    found = []
    shuffled = bvecs[torch.randperm(len(bvecs), generator=torch.Generator().manual_seed(0))]
    for volume, vectors in ((image, bvecs), (moved, turned), (moved, bvecs), (image, shuffled)):
        shells = shell_set(bvals, vectors, slots=SLOTS)
        plain = shell_channels(volume, bvals, shells)
        fitted = torch.cat([plain[1 : 1 + SLOTS], plain[1 + 4 * SLOTS :]]).flatten(1)
        found.append(bundle_response(fitted, shells.counts > 0, plain[0]))
    assert_close(found[0], found[1], atol=2e-3, rtol=0)
    assert_close(found[0], found[2], atol=2e-3, rtol=0)  # the vectors' frame alone does not matter either
    assert (found[0] - found[3]).abs().max() > 0.1  # what belongs to which volume does


@pytest.mark.parametrize("shape", [(1, 1, 40), (12, 12, 1), (2, 2, 2)])
def test_scans_of_few_voxels_or_slices_are_taken(shape):
    bvals, bvecs = table()
    axis = torch.tensor([[0.6, 0.0, 0.8]], dtype=torch.float64)
    image = fibre_signal(bvals, bvecs, axis).view(-1, 1, 1, 1).expand(-1, *shape)
    found, _ = channels(image, "scan")
    zonal = zonal_response(found.flatten(1), SLOTS, axis.expand(math.prod(shape), 3))
    assert_close(zonal[:2, 1], nominal_response(torch.tensor(SHELLS), 6)[:, 1].float(), rtol=0.02, atol=0)


def test_factors_of_noise_are_bounded_and_absent_shells_and_means_stay():
    bvals = torch.tensor([1000.0, 1000.0, 0.0])
    factors = response_factors(
        torch.tensor([[2.0, 1e-3, -1e-3, 0.0], [2.0, -0.05, 0.9, 0.0], [0.0] * 4]), bvals
    )
    assert_close(factors[2], torch.ones(4))
    assert_close(factors[:, 0], torch.ones(3))
    assert factors.min() >= 0.4
    assert factors.max() <= 2.5
