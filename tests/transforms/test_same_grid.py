"""Whether two volumes share a grid, voxel by voxel."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor

from dmri_monai.transforms.same_grid import check_same_grid

EDGE_MM = 2.0


def volume(shift_mm: float = 0.0, turn_degrees: float = 0.0, **meta) -> MetaTensor:
    """A grid of 64 voxels along x whose affine is shifted along x, then turned about z at its first voxel."""
    angle = math.radians(turn_degrees)
    affine = torch.eye(4, dtype=torch.float64) * EDGE_MM
    affine[:2, :2] = EDGE_MM * torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    affine[0, 3], affine[3, 3] = shift_mm, 1.0
    return MetaTensor(torch.zeros(1, 64, 3, 3), affine=affine, meta=meta)


@pytest.mark.parametrize(
    "other",
    [volume(), volume(0.09 * EDGE_MM), torch.zeros(3, 64, 3, 3)],
    ids=["same", "rounded", "no-affine"],
)
def test_what_lies_on_the_image_passes(other):
    check_same_grid(volume(), other, "mask", "here")


def test_a_shift_of_more_than_a_tenth_of_a_voxel_is_refused_with_its_size_and_file():
    moved = volume(0.11 * EDGE_MM, filename_or_obj="mask.nii.gz")
    with pytest.raises(ValueError, match="here: 'mask' lies up to 0.22 mm beside the image.*: mask.nii.gz$"):
        check_same_grid(volume(), moved, "mask", "here")


def test_a_turn_is_measured_where_it_moves_voxels_most():
    check_same_grid(volume(), volume(turn_degrees=0.05), "mask", "here")
    with pytest.raises(ValueError, match="'mask' lies up to 2.2 mm beside the image"):
        check_same_grid(volume(), volume(turn_degrees=1.0), "mask", "here")


def test_another_shape_is_refused_with_both():
    with pytest.raises(ValueError, match=r"'mask' has grid \(64, 3, 4\), the image \(64, 3, 3\)"):
        check_same_grid(volume(), torch.zeros(1, 64, 3, 4), "mask", "here")
