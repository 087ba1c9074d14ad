"""What is red is left-right, and the letters at the edges are true, whatever the grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmri_monai.gradients import grid_rotation
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.qspace.direction_maps import direction_maps
from dmri_monai.report.colour import direction_colours
from dmri_monai.report.slices import MARGIN, PLANES, Grid
from tests.conftest import STANDARD_AFFINES
from tests.report.scenes import blob_at, fibres_along

AXES = {"left-right": (1.0, 0.0, 0.0), "back-front": (0.0, 1.0, 0.0), "down-up": (0.0, 0.0, 1.0)}
SIDES = {
    "L": (-14.0, 0, 0),
    "R": (14.0, 0, 0),
    "P": (0, -14.0, 0),
    "A": (0, 14.0, 0),
    "I": (0, 0, -14.0),
    "S": (0, 0, 14.0),
}


def maps_of(world, affine):
    image, gradients = fibres_along(world, affine)
    plain = image.as_tensor()
    mask = head_mask(mean_b0(plain, gradients.bvals, gradients.b0_threshold, without_b0="lowest shell"))
    return direction_maps(plain, gradients, affine, mask), mask


@pytest.mark.parametrize("channel", [0, 1, 2], ids=["red", "green", "blue"])
def test_a_fibre_along_a_world_axis_has_that_axis_colour_alone(standard_affine, channel):
    maps, mask = maps_of(list(AXES.values())[channel], standard_affine)
    colours = direction_colours(maps.fa, maps.v1_world)[mask.numpy()].astype(float).mean(axis=0)
    others = np.delete(colours, channel)
    assert colours[channel] > 180
    assert others.max() < 12


def test_colours_taken_from_voxel_directions_would_be_wrong_on_a_turned_grid():
    affine = STANDARD_AFFINES["PLS-iso2"]
    maps, mask = maps_of(AXES["left-right"], affine)
    voxel = torch.einsum("ji,jxyz->ixyz", grid_rotation(affine).float(), maps.v1_world)
    colours = direction_colours(maps.fa, voxel)[mask.numpy()].astype(float).mean(axis=0)
    assert colours[1] > 180
    assert colours[0] < 12


@pytest.mark.parametrize("convention", ["radiological", "neurological"])
@pytest.mark.parametrize("side", SIDES.keys())
def test_the_letter_at_an_edge_says_what_lies_there(standard_affine, side, convention):
    label = blob_at(SIDES[side], standard_affine).numpy()
    grid = Grid(standard_affine.numpy(), label.shape, convention)
    volume = grid.canonical(label)
    seen = 0
    for plane in PLANES:
        view = grid.view(plane, np.ones(volume.shape, bool), 1000)
        firsts = [letters[0] for letters in view.letters]
        if side in firsts:
            seen += 1
            rows, columns = np.nonzero(sum(grid.pictures(volume, view)))
            height, width = grid.pictures(volume, view)[0].shape
            place = [width - columns.mean(), columns.mean(), height - rows.mean(), rows.mean()]
            middle = [width / 2, width / 2, height / 2, height / 2]
            edge = firsts.index(side)
            assert place[edge] > middle[edge]
    assert seen == 2


def test_the_radiological_view_has_the_patients_left_on_the_right():
    grid = Grid(STANDARD_AFFINES["oblique-left-iso2"].numpy(), (8, 8, 8))
    view = grid.view("axial", np.ones((8, 8, 8), bool), 4)
    assert (view.letters[0][0], view.letters[1][0]) == ("R", "L")


def test_a_strongly_oblique_grid_has_two_letters_at_an_edge():
    grid = Grid(STANDARD_AFFINES["oblique-right-iso2"].numpy(), (8, 8, 8))
    letters = {grid.view(p, np.ones((8, 8, 8), bool), 4).letters for p in PLANES}
    assert any(len(edge) > 1 for view in letters for edge in view)


def test_pictures_keep_the_proportions_in_millimetres():
    grid = Grid(STANDARD_AFFINES["RAS-1.7x1.7x5"].numpy(), (20, 30, 10))
    views = {p: grid.view(p, np.ones((20, 30, 10), bool), 4).aspect for p in PLANES}
    assert views["axial"] == pytest.approx(20 / 30)
    assert views["coronal"] == pytest.approx(20 * 1.7 / (10 * 5))
    assert views["sagittal"] == pytest.approx(30 * 1.7 / (10 * 5))


def test_pictures_leave_out_the_air_and_nothing_else():
    """A block of label 1 is whole in every plane's pictures, and their proportions are those of what is shown."""
    affine = STANDARD_AFFINES["PLS-1.7x1.7x5"]
    label = np.zeros((40, 60, 20), bool)
    label[20:30, 10:25, 8:14] = True
    grid = Grid(affine.numpy(), label.shape)
    volume = grid.canonical(label)
    for plane in PLANES:
        view = grid.view(plane, volume, 1000)
        pictures = grid.pictures(volume, view)
        assert sum(int(p.sum()) for p in pictures) == label.sum()
        rows, columns = pictures[0].shape
        assert (rows, columns) == tuple(n + 2 * MARGIN for n in np.ptp(np.nonzero(pictures[0]), axis=1) + 1)
        spacing = np.linalg.norm(grid.canonical_affine[:3, :3], axis=0)
        _, column, row = PLANES[plane]
        assert view.aspect == pytest.approx(columns * spacing[column] / (rows * spacing[row]))


def test_an_empty_mask_shows_the_whole_slice():
    grid = Grid(np.eye(4), (6, 7, 8))
    view = grid.view("axial", np.zeros((6, 7, 8), bool), 4)
    assert grid.pictures(np.zeros((6, 7, 8)), view)[0].shape == (7, 6)
