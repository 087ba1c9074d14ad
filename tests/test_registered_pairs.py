"""Benchmarks of one head in two scans: what a rigid motion did is undone, directions with it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from benchmarks.real.heads import agreement
from benchmarks.real.slice_angles import compared

SHAPE, SIZE_MM = (24, 22, 20), 3.0
GRIDS = {
    "left-handed": np.diag([-1.0, 1.0, 1.0]),
    "oblique": Rotation.from_euler("xyz", [20, -10, 35], degrees=True).as_matrix(),
}
# from a place of the head in the first world to that in the second
MOVE = np.eye(4)
MOVE[:3, :3] = Rotation.from_euler("xyz", [4, -9, 6], degrees=True).as_matrix()
MOVE[:3, 3] = 5.0, -4.0, 3.0


def affine_of(axes):
    affine = np.eye(4)
    affine[:3, :3] = axes * SIZE_MM
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return affine


def places(affine):
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def fibre(points):
    """(..., 3): a direction that turns from place to place."""
    field = np.stack(
        [np.cos(points[..., 1] / 25), np.sin(points[..., 2] / 25), 0.6 + 0 * points[..., 0]], axis=-1
    )
    return field / np.linalg.norm(field, axis=-1, keepdims=True)


def scans(axes):
    """The head in its own world, and the same head after MOVE on a grid with `axes`: as `slice_angles` has them."""
    here, there = affine_of(np.eye(3)), affine_of(axes)
    back = np.linalg.inv(MOVE)
    own = places(there) @ back[:3, :3].T + back[:3, 3]
    found = []
    for affine, directions in ((here, fibre(places(here))), (there, fibre(own) @ MOVE[:3, :3].T)):
        axis = torch.from_numpy(directions).movedim(-1, 0).float()
        one = torch.ones(1, *SHAPE)
        found.append({"affine": torch.from_numpy(affine), "head": one, "fa": one, "tensor": axis})
    return found


@pytest.mark.parametrize("axes", GRIDS.values(), ids=GRIDS.keys())
def test_directions_agree_once_the_heads_lie_on_one_another(axes):
    angles = {}
    for name, move in (("none", np.eye(4)), ("right", MOVE), ("inverse", np.linalg.inv(MOVE))):
        (line,) = compared(*scans(axes), torch.from_numpy(move))
        angles[name] = line["angle_deg"]
    assert angles["right"] < 3.0  # of voxels that lie up to half of one apart
    assert angles["none"] > 8.0  # controls
    assert angles["inverse"] > 16.0


def test_rotation_alone_is_turned_the_right_way():
    first, _ = scans(np.eye(3))
    turned = {
        **first,
        "tensor": torch.einsum("ij,jxyz->ixyz", torch.from_numpy(MOVE[:3, :3]).float(), first["tensor"]),
    }
    pure = np.eye(4)
    pure[:3, :3] = MOVE[:3, :3]
    turned["affine"] = torch.from_numpy(pure @ first["affine"].numpy())  # head and grid turned together
    (line,) = compared(first, turned, torch.from_numpy(pure))
    assert line["angle_deg"] < 0.1
    (wrong,) = compared(first, turned, torch.from_numpy(np.eye(4)))
    assert wrong["angle_deg"] > 4.0


@pytest.mark.parametrize("axes", GRIDS.values(), ids=GRIDS.keys())
def test_tissue_agrees_once_the_heads_lie_on_one_another(axes):
    here, there = affine_of(np.eye(3)), affine_of(axes)
    truth = 1 + (np.sin(places(here) / 9).sum(-1) > 0).astype(int)
    back = np.linalg.inv(here) @ np.linalg.inv(MOVE) @ there
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    place = np.tensordot(back[:3, :3], index, 1) + back[:3, 3][:, None, None, None]
    seen = map_coordinates(truth, place, order=0, cval=0)
    laid, plain, wrong = (
        agreement((truth, here), (seen, move @ there)) for move in (np.linalg.inv(MOVE), np.eye(4), MOVE)
    )
    assert laid > plain + 0.1
    assert laid > wrong + 0.1
