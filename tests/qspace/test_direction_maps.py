"""FA and principal direction for pictures and checks."""

from __future__ import annotations

import pytest
import torch

from dmri_monai.gradients import GradientTable
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.qspace.direction_maps import direction_maps, tensor_volumes
from tests.check.fibres import table
from tests.conftest import STANDARD_AFFINES
from tests.report.scenes import fibres_along


def joined(*tables: GradientTable) -> GradientTable:
    return GradientTable(torch.cat([t.bvals for t in tables]), torch.cat([t.bvecs for t in tables]))


@pytest.mark.parametrize(
    ("gradients", "bvals"),
    [
        (joined(table(2, 20, 700.0), table(0, 30, 1400.0), table(0, 40, 3000.0)), [0.0, 700.0, 1400.0]),
        (joined(table(2, 30, 2500.0), table(0, 60, 5000.0)), [0.0, 2500.0]),
        (joined(table(1, 4, 300.0), table(0, 30, 2500.0)), [0.0, 2500.0]),
        (joined(table(0, 20, 700.0), table(0, 30, 1400.0)), [700.0, 1400.0]),
    ],
    ids=["low-shells", "lowest-of-high", "low-shell-too-small", "no-b0"],
)
def test_the_tensor_uses_the_shells_where_the_signal_is_gaussian(gradients, bvals):
    rows = tensor_volumes(gradients)
    assert sorted(set(gradients.bvals[rows].tolist())) == bvals


def test_five_directions_determine_no_tensor():
    assert tensor_volumes(table(3, 5)) is None


def test_one_shell_without_b0_determines_no_tensor():
    assert tensor_volumes(table(0, 30)) is None


def test_fa_is_that_of_the_tensor_and_zero_outside_the_mask():
    affine = STANDARD_AFFINES["oblique-left-iso2"]
    image, gradients = fibres_along((0, 1, 0), affine)
    plain = image.as_tensor()
    mask = head_mask(mean_b0(plain, gradients.bvals))
    maps = direction_maps(plain, gradients, affine, mask)
    along, across = 1.7, 0.3
    mean = (along + 2 * across) / 3
    expected = (1.5 * ((along - mean) ** 2 + 2 * (across - mean) ** 2) / (along**2 + 2 * across**2)) ** 0.5
    assert float(maps.fa[mask].median()) == pytest.approx(expected, abs=0.01)
    assert float(maps.fa[~mask].abs().max()) == 0
