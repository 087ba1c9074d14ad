"""What lies far from the largest body of tissue is dropped, in millimetres, and nothing of the brain is."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from dmri_monai.transforms import KeepBrainBodyd
from dmri_monai.transforms.brain_body import near_largest_body
from tests.transforms.fields import affine_of, world_points

DEPTH_MM = 5.0
BRAIN_MM, FACE_MM, BRIDGE_MM = 35.0, 12.0, 3.0  # radii
FACE_AT = np.array([0.0, 60.0, 0.0])
GRIDS = {
    "iso": ("RAS", (2.5, 2.5, 2.5)),
    "mirrored": ("LAS", (2.0, 2.0, 2.5)),
    "thick": ("PLS", (1.7, 1.7, 5.0)),
    "thicker than the depth": ("RAS", (2.0, 2.0, 8.0)),
    "oblique": ("oblique", (2.0, 2.0, 4.0)),
}


def placed(name):
    """Affine of a grid that holds the head, and the positions of its voxels (X, Y, Z, 3) in mm."""
    orientation, spacing = GRIDS[name]
    shape = tuple(2 * int(80 / size) + 1 for size in spacing)
    affine = affine_of(orientation, spacing, shape)
    return affine, world_points(affine, shape)


def ball(points, centre, radius):
    return np.linalg.norm(points - centre, axis=-1) <= radius


def head(name):
    """Brain, face and the thin bridge between them, each (X, Y, Z) bool, with the affine."""
    affine, points = placed(name)
    brain, face = ball(points, 0, BRAIN_MM), ball(points, FACE_AT, FACE_MM)
    along = (points[..., 1] > 0) & (points[..., 1] < FACE_AT[1])
    bridge = (np.linalg.norm(points[..., ::2], axis=-1) <= BRIDGE_MM) & along & ~brain & ~face
    return affine, brain, face, bridge


def kept(values, affine, depth=DEPTH_MM):
    found = KeepBrainBodyd("pred", depth)(
        {"pred": MetaTensor(torch.as_tensor(values), affine=torch.as_tensor(affine))}
    )
    return found["pred"]


@pytest.mark.parametrize("name", GRIDS)
def test_face_that_touches_the_brain_is_dropped_and_the_brain_stays(name):
    affine, brain, face, bridge = head(name)
    values = torch.from_numpy(brain | face | bridge).float()[None]
    found = kept(values, affine)[0].numpy() > 0
    assert face.any()
    assert not (found & face).any()
    assert found[brain].all()
    assert (
        kept(values, affine, 0.0)[0].numpy()[face].all()
    )  # the control: without an opening they are one body


def test_depth_is_in_millimetres_of_the_affine():
    """The control of all grids: where the affine says that voxels are larger, the bridge is thick."""
    _, brain, face, bridge = head("iso")
    values = torch.from_numpy(brain | face | bridge).float()[None]
    assert not kept(values, np.diag([2.5, 2.5, 2.5, 1.0]))[0].numpy()[face].any()
    assert kept(values, np.diag([10.0, 10.0, 10.0, 1.0]))[0].numpy()[face].all()


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_brain_cut_by_the_field_of_view_loses_nothing(name, axis):
    affine, points = placed(name)
    brain = ball(points, 0, BRAIN_MM)
    half = np.take(brain, range(brain.shape[axis] // 2, brain.shape[axis]), axis)
    values = torch.from_numpy(half).float()[None]
    assert torch.equal(kept(values, affine).as_tensor(), values)


def test_border_of_the_field_takes_nothing_away():
    """A slab of 8 mm is deep where the field ends beside it, since what follows is not known."""
    _, points = placed("iso")
    tissue = ball(points, [0, 0, 20], 16)
    tissue[:, :, :4] = True
    found = near_largest_body(tissue, (2.0, 2.0, 2.0), DEPTH_MM)
    assert found[:, :, :4].all()
    assert not (found & tissue)[:, :, 4:].any()
    inside = np.roll(tissue, 1, 2)  # the control: with outside on both sides it is thin
    found = near_largest_body(inside, (2.0, 2.0, 2.0), DEPTH_MM)
    assert not (found & inside)[:, :, :5].any()
    assert found[:, :, 5:][inside[:, :, 5:]].all()


@pytest.mark.parametrize("slices", [1, 2, 3])
def test_scan_of_few_slices_keeps_its_brain(slices):
    affine, points = placed("thick")
    middle = slice(points.shape[2] // 2, points.shape[2] // 2 + slices)
    values = torch.from_numpy(ball(points, 0, BRAIN_MM)[:, :, middle]).float()[None]
    assert values.any()
    assert torch.equal(kept(values, affine).as_tensor(), values)


def test_largest_body_stays_where_none_is_deep():
    """Two sheets of one voxel in the middle of the field."""
    tissue = np.zeros((30, 30, 30), bool)
    tissue[5:25, 5:25, 6] = True
    tissue[5:15, 5:15, 22] = True
    found = tissue & near_largest_body(tissue, (2.0, 2.0, 2.0), DEPTH_MM)
    assert found[:, :, 6].sum() == 400
    assert not found[:, :, 22].any()


@pytest.mark.parametrize("value", [0.0, 1.0], ids=["empty", "full"])
@pytest.mark.parametrize("channels", [1, 3])
def test_prediction_of_one_value_is_left_alone(value, channels):
    values = torch.full((channels, 8, 9, 10), value / channels)
    assert torch.equal(kept(values, np.eye(4)).as_tensor(), values)


def test_of_two_equal_bodies_the_first_stays_every_time():
    _, points = placed("iso")
    first, second = ball(points, [-40, 0, 0], 20), ball(points, [40, 0, 0], 20)
    assert first.sum() == second.sum()
    for _ in range(3):
        found = near_largest_body(first | second, (2.5, 2.5, 2.5), DEPTH_MM)
        assert found[first].all()
        assert not found[second].any()


def head_of_classes(name):
    """(1, X, Y, Z) class numbers: white matter in grey matter in CSF, a face of all three."""
    affine, brain, face, bridge = head(name)
    _, points = placed(name)
    classes = np.zeros(brain.shape, np.float32)
    classes[brain | bridge] = 3
    classes[ball(points, 0, BRAIN_MM - 4)] = 2
    classes[ball(points, 0, BRAIN_MM - 10)] = 1
    classes[face] = np.arange(face.sum()) % 3 + 1
    return affine, torch.from_numpy(classes)[None], face


def test_classes_fractions_and_probabilities_are_kept_and_dropped_alike():
    affine, classes, face = head_of_classes("oblique")
    found = kept(classes, affine)
    assert set(found.unique().tolist()) == {0, 1, 2, 3}
    assert torch.equal(found.as_tensor(), torch.where(found.as_tensor() > 0, classes, 0))
    assert not found[0].numpy()[face].any()
    one_hot = torch.nn.functional.one_hot(classes[0].long(), 4).movedim(-1, 0).float()
    fractions, chances = 0.8 * one_hot[1:], 0.7 * one_hot + 0.1
    kept_fractions, kept_chances = kept(fractions, affine).as_tensor(), kept(chances, affine).as_tensor()
    assert torch.equal(kept_chances.argmax(0), found[0].long())
    torch.testing.assert_close(kept_chances[0].numpy()[face], np.ones(face.sum(), np.float32))
    inside = found[0].as_tensor() > 0
    assert torch.equal(kept_fractions[:, inside], fractions[:, inside])
    assert not kept_fractions[:, torch.from_numpy(face)].any()


def test_partly_filled_voxels_stay_beside_the_brain_and_go_elsewhere():
    affine, brain, face, _ = head("iso")
    values = np.zeros((3, *brain.shape), np.float32)
    values[1] = np.where(brain, 1.0, 0.0) + np.where(face, 0.4, 0.0)
    rim = np.roll(brain, 1, 0) & ~brain
    values[1][rim] = 0.3
    found = kept(values, affine).numpy()
    assert (found[1][rim] == np.float32(0.3)).all()
    assert not found[:, face].any()


def test_what_the_prediction_was_is_kept():
    affine, classes, _ = head_of_classes("thick")
    before = classes.clone()
    found = kept(classes.to(torch.uint8), affine)
    assert found.dtype == torch.uint8
    torch.testing.assert_close(found.affine, torch.as_tensor(affine))
    assert torch.equal(classes, before)


def test_other_predictions_are_refused():
    with pytest.raises(ValueError, match="2 channels, expected 1 of class numbers, 3 of fractions or 4"):
        kept(torch.zeros(2, 4, 4, 4), np.eye(4))
    with pytest.raises(TypeError, match="'pred' is a Tensor, expected a MetaTensor"):
        KeepBrainBodyd("pred", DEPTH_MM)({"pred": torch.zeros(1, 4, 4, 4)})


def test_item_that_says_so_stays_as_it_is():
    affine, brain, face, _ = head("iso")
    values = MetaTensor(torch.from_numpy(brain | face).float()[None], affine=torch.as_tensor(affine))
    keep = KeepBrainBodyd("pred", DEPTH_MM, unless_key="whole")
    torch.testing.assert_close(keep({"pred": values, "whole": True})["pred"], values, rtol=0, atol=0)
    for item in ({"pred": values, "whole": False}, {"pred": values}):
        assert (keep(item)["pred"] != values).any()
