"""Random artifacts do what their record says, in the world frame and on every grid."""

import math

import pytest
import torch

from dmri_monai.artifacts import gradient_deviation, rotation_matrix
from dmri_monai.artifacts.engine import (
    EddyCurrents,
    GradientNonlinearity,
    Susceptibility,
    Vibration,
    corrupt,
    replay,
)
from dmri_monai.artifacts.spatial_fields import monomials
from dmri_monai.gradients import grid_rotation
from tests.conftest import ORIENTATIONS, grid_affine
from tests.transforms.test_artifacts import directions, make_item

D = torch.float64
SIZE = 21
TURN_DEG = [6.0, -5.0, 11.0]  # about world x, y, z
GRIDS = {name: grid_affine(ORIENTATIONS[name], (2.0, 2.5, 2.25)) for name in ("RAS", "PLS", "oblique-left")}


def fibres(positions):
    """(..., 3) world direction of the fibres at world `positions` (..., 3) in mm from the centre."""
    x, y, z = (positions / 25).unbind(-1)
    azimuth, tilt = 0.4 + 0.5 * x + 0.3 * z, 0.4 * y
    return torch.stack([tilt.cos() * azimuth.cos(), tilt.cos() * azimuth.sin(), tilt.sin()], -1)


def tensors(positions):
    v = fibres(positions)
    return 1.3e-3 * v[..., :, None] * v[..., None, :] + 0.4e-3 * torch.eye(3, dtype=D)


def table(count=60):
    bvals = torch.cat([torch.zeros(1, dtype=D), torch.full((count,), 1000.0, dtype=D)])
    return bvals, torch.cat([torch.zeros(1, 3, dtype=D), directions(count)])


def signal(diffusion, bvals, g):
    return 1000 * torch.exp(-bvals[:, None, None, None] * torch.einsum("ni,xyzij,nj->nxyz", g, diffusion, g))


def world_positions(affine):
    voxels = torch.stack(torch.meshgrid(*[torch.arange(SIZE, dtype=D)] * 3, indexing="ij"), -1)
    return (voxels - (SIZE - 1) / 2) @ torch.as_tensor(affine).double()[:3, :3].T


def main_direction(image, bvals, g):
    """(X, Y, Z, 3) principal direction of a log-linear fit, in the frame of `g`."""
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    columns = [-bvals * g[:, a] * g[:, b] * (1 if a == b else 2) for a, b in pairs]
    fit = torch.linalg.pinv(torch.stack([torch.ones_like(bvals), *columns], -1)) @ image.clamp(
        min=1e-3
    ).log().flatten(1)
    full = fit[1:][[0, 3, 4, 3, 1, 5, 4, 5, 2]].T.reshape(*image.shape[1:], 3, 3)
    return torch.linalg.eigh(full).eigenvectors[..., -1]


def angle_deg(a, b):
    return torch.rad2deg(torch.arccos((a * b).sum(-1).abs().clamp(max=1)))


def moved_by(affine, artifact, drawn):
    """A scan on `affine` with one hand-written motion, its table and voxel positions."""
    bvals, g = table()
    positions = world_positions(affine)
    image = signal(tensors(positions), bvals, g)
    applied = [{"artifact": artifact, "drawn": drawn}]
    record = {"version": 1, "shape": [len(bvals), *[SIZE] * 3], "volumes": None, "slice_axis": 2}
    record |= {"acquisition": {}, "applied": applied}
    q = grid_rotation(affine)
    return image, replay(image, bvals, g @ q, affine=affine, record=record), (bvals, g), positions


POSE = {"rotation_deg": [TURN_DEG], "translation_mm": [[0.0, 0.0, 0.0]]}


@pytest.mark.parametrize("name", list(GRIDS))
def test_recorded_motion_turns_the_head_in_the_world(name):
    _, moved, (bvals, g), positions = moved_by(GRIDS[name], "motion", {"starts": [1], **POSE})
    rotation = rotation_matrix(torch.deg2rad(torch.tensor(TURN_DEG, dtype=D)))
    inside = (slice(6, -6),) * 3
    seen = main_direction(moved, bvals, g)[inside]
    expected = (fibres(positions @ rotation) @ rotation.T)[inside]  # R v(R^T x)
    assert float(angle_deg(seen, expected).max()) <= 1.0
    # the table as acquired is wrong for the head: with the right vectors its own directions come back
    own = main_direction(moved, bvals, g @ rotation)[inside]
    assert float(angle_deg(own, fibres(positions @ rotation)[inside]).max()) <= 1.0
    # control: the inverse rotation is not it
    wrong = (fibres(positions @ rotation.T) @ rotation)[inside]
    assert float(angle_deg(seen, wrong).median()) > 10.0


@pytest.mark.parametrize("name", list(GRIDS))
def test_slices_after_a_movement_are_those_of_the_moved_head(name):
    late = [1, 3, 4, 10]
    within = {"axis": 2, "volumes": [5], "slices": [late], **POSE}
    image, mixed, _, _ = moved_by(GRIDS[name], "slice_motion", within)
    _, moved, _, _ = moved_by(GRIDS[name], "motion", {"starts": [5], **POSE})
    up = grid_rotation(GRIDS[name])[2]
    axis = int(up.abs().argmax())
    index = [i if up[axis] > 0 else SIZE - 1 - i for i in late]  # recorded from the feet up
    expected = image.clone()
    expected[5].movedim(axis, 0)[index] = moved[5].movedim(axis, 0)[index]
    torch.testing.assert_close(mixed, expected)
    assert float((mixed - image).abs().max()) > 10


@pytest.mark.parametrize("spread", [0.0, 5.0], ids=["one-b-value", "scattered"])
def test_gradient_nonlinearity_of_a_scan_without_b0_is_about_right(spread):
    g = directions(60)
    bvals = 1000.0 + spread * torch.cos(torch.arange(60, dtype=D) ** 2)
    diffusion = tensors(world_positions(GRIDS["RAS"]))
    image = signal(diffusion, bvals, g)
    done, record = corrupt(
        image, bvals, g, affine=GRIDS["RAS"], preset=GradientNonlinearity(largest=0.1), seed=2
    )
    drawn = record["applied"][0]["drawn"]
    coil = gradient_deviation(torch.tensor(drawn["coefficients"]), (SIZE,) * 3, largest=0.1, like=image)
    truth = signal(coil.mT @ diffusion @ coil, bvals, g)
    change = (truth / image).log()
    assert float(change.std()) > 0.02
    error = ((done / image).log() - change).std() / change.std()
    assert float(error) < 0.1


@pytest.mark.parametrize("name", list(GRIDS))
def test_vibration_follows_the_left_right_gradient_of_the_world(name):
    item = make_item(GRIDS[name])
    clean = item["image"].as_tensor() + 1
    bvecs = item["bvecs"].double()
    q = grid_rotation(GRIDS[name])
    done, record = corrupt(
        clean, item["bvals"], bvecs @ q, affine=GRIDS[name], preset=Vibration(remaining=0.4), seed=1
    )
    loss = (1 - done / clean).flatten(1).amax(1)
    torch.testing.assert_close(loss / loss.max(), (bvecs[:, 0] / bvecs[:, 0].abs().max()).square().float())
    assert 0.4 < float(loss.max()) <= 0.6
    strong = torch.nonzero(bvecs[:, 0].abs() >= 0.5).flatten()
    assert record["applied"][0]["drawn"]["hit_volumes"] == strong.tolist()


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_drawn_eddy_currents_reach_at_most_the_range(kind):
    item = make_item()
    ranges = {"linear_voxels": 0.0, "quadratic_voxels": 0.0} | {f"{kind}_voxels": 2.0}
    bvecs = item["bvecs"].double() @ grid_rotation(item["image"].affine)
    _, record = corrupt(
        item["image"].as_tensor(),
        item["bvals"],
        bvecs,
        affine=item["image"].affine,
        preset=EddyCurrents(**ranges),
        seed=1,
    )
    drawn = record["applied"][0]["drawn"]
    weights = (
        bvecs
        * (item["bvals"] / drawn["b_reference"])[:, None]
        @ torch.tensor(drawn["coefficients"], dtype=D).T
    )
    largest = float(torch.einsum("nm,mxyz->nxyz", weights, monomials((16, 20, 12), 2).double()).abs().max())
    assert largest == pytest.approx(2.0) if kind == "linear" else 0.2 < largest <= 2.0


def test_drawn_field_reaches_its_peak_and_moves_signal_by_the_readout_time():
    item = make_item(phase_encoding_world=torch.tensor([0.0, 1.0, 0.0]), total_readout_time_s=0.05)
    image = torch.zeros_like(item["image"].as_tensor())
    image[:, :, 10] = 1.0
    bvecs = item["bvecs"].double() @ grid_rotation(item["image"].affine)
    done, record = corrupt(
        image,
        item["bvals"],
        bvecs,
        affine=item["image"].affine,
        preset=Susceptibility(peak_hz=40.0),
        seed=1,
        meta=item["image"].meta,
    )
    field = Susceptibility.displacement(
        record["applied"][0]["drawn"], _scan(item), item["image"].as_tensor()
    )[0]
    assert float(field.abs().max()) == pytest.approx(40.0 * 0.05)
    row = torch.arange(20.0).view(1, 1, -1, 1)
    centre = (done * row).sum(2) / done.sum(2)
    stay = field[:, 10].expand_as(centre)
    torch.testing.assert_close(centre, 10 + stay, rtol=0, atol=0.35 * math.ceil(float(stay.abs().max())))


def _scan(item):
    from dmri_monai.artifacts.engine.canonical_grid import Reorientation
    from dmri_monai.artifacts.engine.scan_context import describe

    affine = torch.as_tensor(item["image"].affine).double()
    table = (item["bvals"].numpy(), item["bvecs"].numpy())
    turn = Reorientation.to_canonical(affine)
    return describe(item["image"].as_tensor(), table, affine.numpy(), turn, item["image"].meta)
