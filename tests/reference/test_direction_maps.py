"""Maps for pictures and checks."""

from __future__ import annotations

import pytest
import torch

from dmri_monai.gradients import GradientTable
from dmri_monai.reference.direction_maps import brain_mask, direction_maps, mean_b0, tensor_volumes
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


def test_mean_b0_is_the_mean_of_the_b0_volumes_alone():
    image = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 2, 2)
    gradients = GradientTable(torch.tensor([0.0, 1000.0, 5.0, 1000.0]), torch.eye(4, 3).roll(1, 0))
    torch.testing.assert_close(mean_b0(image, gradients), torch.ones(2, 2, 2))


def test_brain_mask_leaves_out_air_and_survives_a_few_hot_voxels():
    b0 = torch.full((10, 10, 10), 20.0)
    b0[2:8, 2:8, 2:8] = 500.0
    b0[0, 0, :5] = 1e6
    expected = b0 > 100
    torch.testing.assert_close(brain_mask(b0), expected)


def test_brain_mask_of_an_empty_image_is_empty():
    assert not brain_mask(torch.zeros(3, 3, 3)).any()


def test_fa_is_that_of_the_tensor_and_zero_outside_the_mask():
    affine = STANDARD_AFFINES["oblique-left-iso2"]
    image, gradients = fibres_along((0, 1, 0), affine)
    plain = image.as_tensor()
    mask = brain_mask(mean_b0(plain, gradients))
    maps = direction_maps(plain, gradients, affine, mask)
    along, across = 1.7, 0.3
    mean = (along + 2 * across) / 3
    expected = (1.5 * ((along - mean) ** 2 + 2 * (across - mean) ** 2) / (along**2 + 2 * across**2)) ** 0.5
    assert float(maps.fa[mask].median()) == pytest.approx(expected, abs=0.01)
    assert float(maps.fa[~mask].abs().max()) == 0
