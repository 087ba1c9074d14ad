"""Shapes of densities lie along their fibres in the figure, whatever the grid, and are seen from the right side."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from dmri_monai.gradients import grid_rotation
from dmri_monai.qspace.fibre_density import DENSITY_ORDER, density_of_peaks
from dmri_monai.report import Cut
from dmri_monai.report.slices import PLANES
from dmri_monai.so3 import sh_basis
from tests.conftest import STANDARD_AFFINES
from tests.report.test_glyphs import FIBRE, SHAPE, angle_to_fibre, world_points

VOXEL = (3, 4, 3)


def densities(*vectors: np.ndarray) -> torch.Tensor:
    """(45, X, Y, Z) of fibres along `vectors` in the one voxel `VOXEL`."""
    peaks = torch.zeros(3 * len(vectors), *SHAPE)
    peaks[(slice(None), *VOXEL)] = torch.tensor(np.concatenate(vectors)).float()
    return density_of_peaks(peaks)


def drawn(cut: Cut, density: torch.Tensor) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Faces (n, 3 corners, 3) as world points in their order, their colours, and the world steps of a pixel right and
    down.  Where a pixel lies is read from pictures of the world coordinates: no direction is turned for it.
    """
    axes = Figure().add_subplot()
    points = world_points(torch.as_tensor(cut.affine))
    where = np.stack([np.asarray(cut.show(axes, points[..., i]).get_array()) for i in range(3)], axis=-1)
    cut.show_densities(axes, density)
    right, down = where[0, 1] - where[0, 0], where[1, 0] - where[0, 0]
    (shapes,) = axes.collections
    corners = np.stack([path.vertices[:3] for path in shapes.get_paths()])
    world = where[0, 0] + corners[..., :1] * right + corners[..., 1:] * down
    return world, shapes.get_facecolor(), (right, down)


def axis_of(faces: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The outer parts of a shape, about its centre."""
    offsets = faces.reshape(-1, 3) - centre
    far = np.linalg.norm(offsets, axis=1)
    return offsets[far > 0.8 * far.max()]


def through(affine: torch.Tensor, plane: str, convention: str = "radiological") -> Cut:
    return Cut(affine, SHAPE, plane, at_mm=world_points(affine)[VOXEL].tolist(), convention=convention)


def angle(affine: torch.Tensor, plane: str, convention: str, vector: np.ndarray) -> float:
    faces, _, steps = drawn(through(affine, plane, convention), densities(vector))
    offsets = axis_of(faces, world_points(affine)[VOXEL])
    return angle_to_fibre(np.concatenate([offsets, -offsets]), *steps)


@pytest.mark.parametrize("convention", ["radiological", "neurological"])
@pytest.mark.parametrize("plane", PLANES)
def test_a_shape_lies_along_its_fibre_in_the_world(standard_affine, plane, convention):
    assert angle(standard_affine, plane, convention, FIBRE) < 4


def test_shapes_of_densities_left_in_the_voxel_frame_would_lie_wrong():
    affine = STANDARD_AFFINES["oblique-left-iso2"]
    voxel = FIBRE @ grid_rotation(affine).numpy()
    assert max(angle(affine, plane, "radiological", voxel) for plane in PLANES) > 30


def test_a_shape_mirrored_as_on_a_grid_of_the_other_hand_would_lie_wrong():
    assert angle(STANDARD_AFFINES["LAS-iso2"], "axial", "radiological", FIBRE * [-1, 1, 1]) > 30


@pytest.mark.parametrize(
    ("plane", "convention", "nearer"),
    [
        ("axial", "radiological", (0, 0, -1)),  # from the feet
        ("axial", "neurological", (0, 0, 1)),
        ("coronal", "radiological", (0, 1, 0)),  # face to face
        ("coronal", "neurological", (0, -1, 0)),
        ("sagittal", "radiological", (1, 0, 0)),  # the nose points to the right
    ],
)
def test_what_is_nearer_to_the_reader_is_drawn_last(standard_affine, plane, convention, nearer):
    cut, centre = through(standard_affine, plane, convention), world_points(standard_affine)[VOXEL]
    right, down = (step / np.linalg.norm(step) for step in drawn(cut, densities(FIBRE))[2])
    normal = np.cross(right, down)
    tip = normal * np.sign(normal @ nearer) + 0.7 * right  # the end of a fibre that points to the reader
    tip /= np.linalg.norm(tip)
    faces = drawn(cut, densities(tip))[0].mean(axis=1) - centre
    across = faces @ right
    assert across.min() < -0.3 < 0.3 < across.max()
    assert across.argmin() < across.argmax()


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["red", "green", "blue"])
def test_colours_tell_the_direction(axis):
    affine = STANDARD_AFFINES["oblique-left-iso2"]
    plane = "coronal" if axis != 1 else "axial"
    faces, colours, _ = drawn(through(affine, plane), densities(np.eye(3)[axis]))
    far = np.linalg.norm(faces.mean(axis=1) - world_points(affine)[VOXEL], axis=1)
    outer = colours[far > 0.8 * far.max(), :3]
    assert (outer.argmax(axis=1) == axis).all()
    assert (np.sort(outer, axis=1)[:, 1] < 0.5 * outer.max(axis=1)).all()


def test_both_fibres_of_a_crossing_are_drawn_and_the_larger_one_longer():
    affine = STANDARD_AFFINES["RAS-iso2"]
    density = densities(np.eye(3)[0], 0.6 * np.eye(3)[1])
    faces, _, _ = drawn(through(affine, "axial"), density)
    reach = np.abs(faces.reshape(-1, 3) - world_points(affine)[VOXEL]).max(axis=0)
    along = sh_basis(torch.eye(3)[:2], DENSITY_ORDER).double() @ density[(slice(None), *VOXEL)].double()
    assert reach[1] / reach[0] == pytest.approx(float(along[1] / along[0]), abs=0.05)
    assert reach[0] == pytest.approx(1.2, abs=0.05)  # `FILL` of 2 mm


def test_a_window_lies_around_its_point(standard_affine):
    index = np.stack(np.meshgrid(*map(np.arange, (30, 28, 26)), indexing="ij"), axis=-1)
    world = index @ standard_affine[:3, :3].numpy().T + standard_affine[:3, 3].numpy()
    at = world[17, 11, 14] + 0.4
    cut, axes = Cut(standard_affine, (30, 28, 26), at_mm=at.tolist(), width_mm=16.0), Figure().add_subplot()
    where = np.stack([np.asarray(cut.show(axes, world[..., i]).get_array()) for i in range(3)], axis=-1)
    voxel_mm = float(standard_affine[:3, :3].norm(dim=0).max())
    middle = where[where.shape[0] // 2, where.shape[1] // 2]
    assert np.linalg.norm(middle - at) < voxel_mm
    for end in (where[0, -1], where[-1, 0]):
        assert np.linalg.norm(end - where[0, 0]) == pytest.approx(16.0, abs=voxel_mm)


def test_nothing_is_drawn_where_there_are_no_fibres():
    axes = Figure().add_subplot()
    for nothing in (0.0, float("nan")):
        through(torch.eye(4).double(), "axial").show_densities(axes, torch.full((45, *SHAPE), nothing))
    assert not axes.collections


def test_a_point_outside_and_a_volume_of_another_grid_are_refused():
    axes = Figure().add_subplot()
    with pytest.raises(ValueError, match=r"at_mm = .* outside of the grid"):
        Cut(np.eye(4), SHAPE, at_mm=(100.0, 0.0, 0.0)).show(axes, np.zeros(SHAPE))
    with pytest.raises(ValueError, match=r"\(8, 7, 6\) voxels in a cut through \(7, 8, 6\)"):
        Cut(np.eye(4), SHAPE).show(axes, np.zeros((8, 7, 6)))


def test_unknown_plane_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="^plane is 'foo', expected one of axial, coronal, sagittal$"):
        Cut(np.eye(4), SHAPE, "foo")
