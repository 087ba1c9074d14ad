"""Sticks lie along their fibres in the picture, whatever the grid, and say so by their colour."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from dmri_monai.gradients import grid_rotation
from dmri_monai.report import Case, glyphs, write_report
from dmri_monai.report.colour import contrast
from dmri_monai.report.glyphs import BORDER, CELLS, PALETTE, Layout, stick_colours, sticks_uri
from dmri_monai.report.slices import PLANES, Grid
from tests.conftest import STANDARD_AFFINES
from tests.report.scenes import fibres_along

FIBRE = np.array([0.5, 0.62, -0.6])  # in no plane, far from every axis
FIBRE /= np.linalg.norm(FIBRE)
SHAPE = (7, 8, 6)


def decoded(uri: str) -> np.ndarray:
    """(rows, columns) palette entries of a sprite."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def world_points(affine: torch.Tensor) -> np.ndarray:
    """(X, Y, Z, 3) world coordinates of the voxel centres."""
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].numpy().T + affine[:3, 3].numpy()


def stick_in_world(
    affine: torch.Tensor, plane: str, convention: str, vector: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The drawn pixels of a single stick as world points (n, 3), and the world steps (3,) of a picture's pixel, right
    and down.  Where a pixel lies is read from pictures of the world coordinates: no direction is turned for it.
    """
    grid = Grid(affine.numpy(), SHAPE, convention)
    field = np.zeros((*SHAPE, 3))
    field[3, 4, 3] = vector
    view = grid.view(plane, np.ones(grid.canonical(field).shape[:3], bool), 1000)
    slices = np.split(decoded(sticks_uri(grid.canonical(field), grid, view, 1.0)), len(view.indices))
    (found,) = [i for i, pixels in enumerate(slices) if (pixels > BORDER).any()]
    where = grid.pictures(grid.canonical(world_points(affine)), view)[found]
    right, down = where[0, 1] - where[0, 0], where[1, 0] - where[0, 0]
    rows, columns = np.nonzero(slices[found] > BORDER)
    zoom = np.array(slices[found].shape) / where.shape[:2]
    at = [(n + 0.5) / z - 0.5 for n, z in zip((rows, columns), zoom, strict=True)]
    return where[0, 0] + at[0][:, None] * down + at[1][:, None] * right, right, down


def angle_to_fibre(points: np.ndarray, right: np.ndarray, down: np.ndarray) -> float:
    """Degrees between a stick and the part of `FIBRE` in its slice."""
    axis = np.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]
    normal = np.cross(right, down) / np.linalg.norm(np.cross(right, down))
    shadow = FIBRE - normal * (normal @ FIBRE)
    return float(np.rad2deg(np.arccos(min(1.0, abs(axis @ shadow) / np.linalg.norm(shadow)))))


@pytest.mark.parametrize("convention", ["radiological", "neurological"])
@pytest.mark.parametrize("plane", PLANES)
def test_a_stick_lies_along_its_fibre_in_the_world(standard_affine, plane, convention, monkeypatch):
    monkeypatch.setattr(glyphs, "CELL", 64)  # pixels enough to measure an angle
    points, right, down = stick_in_world(standard_affine, plane, convention, FIBRE)
    assert angle_to_fibre(points, right, down) < 2
    np.testing.assert_allclose(points.mean(0), world_points(standard_affine)[3, 4, 3], atol=0.1)


def test_sticks_of_vectors_left_in_the_voxel_frame_would_lie_wrong():
    affine = STANDARD_AFFINES["oblique-left-iso2"]
    voxel = FIBRE @ grid_rotation(affine).numpy()
    assert max(angle_to_fibre(*stick_in_world(affine, plane, "radiological", voxel)) for plane in PLANES) > 30


def test_a_stick_mirrored_as_on_a_grid_of_the_other_hand_would_lie_wrong():
    affine = STANDARD_AFFINES["LAS-iso2"]
    mirrored = FIBRE * [-1, 1, 1]
    assert angle_to_fibre(*stick_in_world(affine, "axial", "radiological", mirrored)) > 30


@pytest.mark.parametrize("direction", [0, 1, 2], ids=["left-right", "front-back", "down-up"])
def test_a_stick_is_as_long_as_its_part_in_the_slice(direction):
    """Along x, y, z a stick is whole in the two planes that hold it, and a dot in the third."""
    affine = STANDARD_AFFINES["RAS-iso2"]
    planes = ("sagittal", "coronal", "axial")  # the plane across each axis
    lengths = []
    for plane in planes:
        points = stick_in_world(affine, plane, "radiological", np.eye(3)[direction])[0]
        lengths.append(np.linalg.norm(np.ptp(points, axis=0)))
    assert lengths.pop(direction) < 0.7
    assert min(lengths) > 0.8 * 2.0


def test_length_follows_the_amplitude_up_to_a_full_stick():
    affine = STANDARD_AFFINES["RAS-iso2"]
    spans = []
    for amplitude in (0.5, 1.0, 3.0):
        points = stick_in_world(affine, "axial", "radiological", np.array([amplitude, 0, 0]))[0]
        spans.append(float(np.ptp(points[:, 0])))
    assert spans[0] == pytest.approx(0.5 * spans[1], abs=0.35)
    assert spans[2] == spans[1]


@pytest.mark.parametrize("none", [0.0, float("nan")], ids=["zero", "nan"])
def test_nothing_is_drawn_where_there_is_no_peak(none):
    grid = Grid(np.eye(4), SHAPE)
    view = grid.view("axial", np.ones(SHAPE, bool), 4)
    assert decoded(sticks_uri(np.full((*SHAPE, 9), none), grid, view, 1.0)).max() == 0


def test_every_peak_of_a_voxel_is_drawn():
    grid = Grid(np.eye(4), SHAPE)
    field = np.full((*SHAPE, 9), np.nan)
    field[3, 4, 3] = [1, 0, 0, 0, 1, 0, np.nan, np.nan, np.nan]
    view = grid.view("axial", np.ones(SHAPE, bool), 1000)
    expected = set(stick_colours(np.eye(3)[:2]).tolist())
    assert set(np.unique(decoded(sticks_uri(field, grid, view, 1.0)))) == {0, BORDER} | expected


@pytest.mark.parametrize(("columns", "rows"), [(96, 96), (180, 60), (20, 30)])
@pytest.mark.parametrize("spacing_mm", [(2.0, 2.0), (1.7, 5.0), (5.0, 1.25)], ids=str)
def test_cells_are_few_and_sticks_as_dense_in_both_directions(columns, rows, spacing_mm):
    place = np.array([[1 / spacing_mm[0], 0, 0], [0, -1 / spacing_mm[1], 0]])
    layout = Layout.of(place, columns, rows)
    assert (np.array([columns, rows]) / layout.steps).max() <= 1.25 * CELLS
    across = layout.steps * spacing_mm
    assert across.max() / across.min() < 1.5 or layout.steps.min() == 1
    density = layout.size / (np.array([columns, rows]) * spacing_mm)
    assert density[0] == pytest.approx(density[1], rel=0.02)


@pytest.mark.parametrize("axis", np.eye(3).tolist(), ids=["red", "green", "blue"])
def test_pure_directions_have_pure_colours_that_stand_out_on_their_border(axis):
    entry = int(stick_colours(np.array([axis]))[0])
    rgb = tuple(PALETTE[3 * entry : 3 * entry + 3])
    assert np.argmax(rgb) == np.argmax(axis)
    assert sorted(rgb)[1] < 0.4 * max(rgb)
    assert contrast(rgb, (0, 0, 0)) >= 3
    assert tuple(PALETTE[3 * BORDER : 3 * BORDER + 3]) == (0, 0, 0)


def test_the_sign_of_a_direction_does_not_matter():
    np.testing.assert_array_equal(stick_colours(FIBRE[None]), stick_colours(-FIBRE[None]))


def test_report_draws_the_tensors_direction_for_every_scan_and_given_peaks_beside_it(tmp_path):
    affine = STANDARD_AFFINES["oblique-right-iso2"]
    image, gradients = fibres_along((1, 0, 0), affine)
    peaks = torch.zeros(3, *image.shape[1:])
    peaks[0] = image[0] > 200
    case = Case("s", image, gradients, prediction=peaks, truth=torch.cat([peaks, peaks * float("nan")]))
    html = write_report(tmp_path / "r.html", [case], title="t").read_text(encoding="utf-8")
    for title in ("tensor&#39;s direction", "prediction", "ground truth"):
        assert html.count(f"{title} as sticks (red left-right") == 3
    sources = re.findall(r'<img class="overlay" src="([^"]+)"', html)
    entries = [set(np.unique(decoded(source))) - {0, BORDER} for source in sources[1:3]]
    assert entries == [set(stick_colours(np.eye(3)[:1]).tolist())] * 2  # red alone


def test_peaks_of_another_grid_are_refused(tmp_path):
    image, gradients = fibres_along((1, 0, 0), STANDARD_AFFINES["RAS-iso2"])
    case = Case("s", image, gradients, prediction=torch.zeros(3, 4, 4, 4))
    with pytest.raises(ValueError, match=r"s: 'prediction' has grid \(4, 4, 4\), the image"):
        write_report(tmp_path / "r.html", [case], title="t")
