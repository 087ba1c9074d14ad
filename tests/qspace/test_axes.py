"""Axes as harmonics and angles, against e3nn and NumPy."""

from __future__ import annotations

import math

import pytest
import torch
from e3nn import o3

from dmri_monai.qspace.axes import (
    axis_to_harmonics,
    axis_to_polar,
    harmonics_to_axis,
    polar_to_axis,
    quadratic_form,
)

AXES = torch.nn.functional.normalize(
    torch.randn(2, 3, 4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=1
)


def same_axis(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close((a * b).sum(1).abs(), torch.ones_like(a[:, 0]), atol=1e-10, rtol=0)


def test_harmonics_of_an_axis_lead_back_to_it():
    same_axis(harmonics_to_axis(axis_to_harmonics(AXES)), AXES)


def test_axis_is_where_the_function_is_largest():
    c = torch.randn(1, 5, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    points = torch.nn.functional.normalize(torch.randn(5000, 3, dtype=torch.float64), dim=1)
    on_points = o3.spherical_harmonics(2, points, True, "integral") @ c[0]
    at_axis = (axis_to_harmonics(harmonics_to_axis(c))[0] * c[0]).sum(0)
    assert (at_axis >= on_points.max(dim=0).values - 1e-12).all()
    torch.testing.assert_close(at_axis, on_points.max(dim=0).values, rtol=0.02, atol=0)


def test_quadratic_form_is_the_function_on_the_sphere():
    xx, yy, zz, xy, xz, yz = quadratic_form()
    x, y, z = (AXES[0, i].unsqueeze(-1) for i in range(3))
    form = xx * x * x + yy * y * y + zz * z * z + 2 * (xy * x * y + xz * x * z + yz * y * z)
    torch.testing.assert_close(form.movedim(-1, 0), axis_to_harmonics(AXES)[0])


@pytest.mark.parametrize("mirror", [1.0, -1.0], ids=["rotation", "with-mirror"])
def test_turned_harmonics_have_the_turned_axis(mirror):
    rotation = mirror * o3.rand_matrix(dtype=torch.float64)
    c = torch.randn(2, 5, 4, 5, 6, dtype=torch.float64)
    turned = torch.einsum("ij,bjxyz->bixyz", o3.Irreps("2e").D_from_matrix(rotation), c)
    same_axis(harmonics_to_axis(turned), torch.einsum("ij,bjxyz->bixyz", rotation, harmonics_to_axis(c)))


def test_no_axis_gives_zero_harmonics_and_back():
    nothing = torch.tensor([[0.0, 0, 0], [math.nan] * 3]).view(2, 3, 1)
    assert axis_to_harmonics(nothing).abs().max() == 0
    assert harmonics_to_axis(torch.zeros(2, 5, 1)).abs().max() == 0


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ((0, 0, 1), (0.0, 0.0)),
        ((0, 0, -1), (0.0, 0.0)),
        ((1, 0, 0), (0.5, 0.0)),
        ((-1, 0, 0), (0.5, 0.0)),
        ((0, -2, 0), (0.5, 0.5)),
        ((-1, 1, 0), (0.5, 0.75)),
        ((1, -1, 0), (0.5, 0.75)),
        ((0, 1, -1), (0.75, 0.5)),
        ((0, -1, 1), (0.75, 0.5)),
    ],
    ids=str,
)
def test_polar_angles_of_known_axes(axis, expected):
    angles = axis_to_polar(torch.tensor(axis, dtype=torch.float64).view(1, 3, 1))
    torch.testing.assert_close(angles.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_polar_angles_lead_back_to_the_axis_and_ignore_its_sign_and_length():
    angles = axis_to_polar(AXES)
    same_axis(polar_to_axis(angles), AXES)
    torch.testing.assert_close(axis_to_polar(-3 * AXES), angles)
    assert angles.min() >= 0
    assert angles.max() <= 1


def test_polar_angles_jump_where_the_axis_does_not():
    a, b = torch.tensor([[1.0, 1e-6, 1.0], [1.0, -1e-6, 1.0]]).double().view(2, 1, 3, 1)
    assert (axis_to_polar(a) - axis_to_polar(b)).abs().max() > 0.49


def test_no_axis_has_no_angles():
    assert axis_to_polar(torch.zeros(1, 3, 2)).isnan().all()
