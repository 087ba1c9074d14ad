"""Effects of head motion: where voxels go, which gradient they see, and what a wrong table costs."""

import math

import numpy as np
import pytest
import torch

from dmri_monai.artifacts import (
    acquisition_order,
    gradient_deviation,
    gradient_nonlinearity,
    move,
    rotation_matrix,
    shuffle_slices,
    turn_signal,
)
from dmri_monai.gradients import grid_rotation
from dmri_monai.qspace.shell_fit import sh_fit_matrix
from dmri_monai.so3 import sh_basis
from tests.conftest import ORIENTATIONS, grid_affine

D = torch.float64
ISO = (2.0, 2.0, 2.0)


def turn(x=0.0, y=0.0, z=0.0, count=1):
    return rotation_matrix(torch.deg2rad(torch.tensor([[x, y, z]], dtype=D))).expand(count, 3, 3)


def still(count=1):
    return torch.zeros(count, 3, dtype=D)


def test_translation_moves_the_image_by_millimetres_on_an_anisotropic_grid():
    image = torch.zeros(1, 11, 11, 11, dtype=D)
    image[0, 5, 5, 5] = 1.0
    moved = move(
        image,
        rotations=turn(),
        translations_mm=torch.tensor([[4.0, -3.0, 5.0]], dtype=D),
        spacing_mm=(2.0, 3.0, 2.5),
    )
    assert torch.nonzero(moved > 0.999).tolist() == [[0, 7, 4, 7]]


@pytest.mark.parametrize(
    ("angles", "start", "end"),
    [
        ((0, 0, 90), (9, 5, 5), (5, 9, 5)),
        ((90, 0, 0), (5, 9, 5), (5, 5, 9)),
        ((0, 90, 0), (5, 5, 9), (9, 5, 5)),
    ],
    ids=["z", "x", "y"],
)
def test_rotation_is_right_handed_about_its_axis(angles, start, end):
    image = torch.zeros(1, 11, 11, 11, dtype=D)
    image[(0, *start)] = 1.0
    moved = move(image, rotations=turn(*angles), translations_mm=still(), spacing_mm=ISO)
    assert torch.nonzero(moved > 0.99).tolist() == [[0, *end]]


def test_rotation_on_an_anisotropic_grid_is_by_millimetres():
    image = torch.zeros(1, 13, 13, 3, dtype=D)
    image[0, 10, 6, 1] = 1.0  # 4 voxels of 3 mm along x
    moved = move(image, rotations=turn(z=90.0), translations_mm=still(), spacing_mm=(3.0, 2.0, 2.0))
    assert torch.nonzero(moved > 0.99).tolist() == [[0, 6, 12, 1]]  # 6 voxels of 2 mm along y


def test_rotation_comes_before_translation():
    image = torch.zeros(1, 11, 11, 11, dtype=D)
    image[0, 7, 5, 5] = 1.0
    shift = torch.tensor([[4.0, 0.0, 0.0]], dtype=D)
    moved = move(image, rotations=turn(z=90.0), translations_mm=shift, spacing_mm=ISO)
    assert torch.nonzero(moved > 0.99).tolist() == [[0, 7, 7, 5]]


def test_each_volume_moves_by_its_own_pose():
    image = torch.zeros(2, 9, 9, 9, dtype=D)
    image[:, 4, 4, 4] = 1.0
    shift = torch.tensor([[0.0, 0.0, 0.0], [0.0, 4.0, 0.0]], dtype=D)
    moved = move(image, rotations=turn(count=2), translations_mm=shift, spacing_mm=ISO)
    assert torch.nonzero(moved > 0.999).tolist() == [[0, 4, 4, 4], [1, 4, 6, 4]]


@pytest.mark.parametrize("name", list(ORIENTATIONS))
def test_world_rotation_moves_the_same_anatomy_on_every_grid(name):
    affine = grid_affine(ORIENTATIONS[name], (2.0, 3.0, 2.5))
    q = grid_rotation(affine)
    world = turn(8.0, -5.0, 12.0)[0]
    centre = affine @ torch.tensor([10.0, 10.0, 10.0, 1.0], dtype=D)
    voxels = torch.stack(torch.meshgrid(*[torch.arange(21, dtype=D)] * 3, indexing="ij"), -1)
    positions = voxels @ affine[:3, :3].T + affine[:3, 3] - centre[:3]

    def blob(at):
        return torch.exp(-((positions - at) ** 2).sum(-1) / (2 * 4.0**2))[None]

    at = torch.tensor([6.0, -4.0, 5.0], dtype=D)
    moved = move(
        blob(at), rotations=(q.T @ world @ q)[None], translations_mm=still(), spacing_mm=(2.0, 3.0, 2.5)
    )
    found = (moved[0, ..., None] * positions).sum((0, 1, 2)) / moved.sum()
    torch.testing.assert_close(found, world @ at, rtol=0, atol=0.05)


def scheme(count=60):
    """Directions spread over the sphere, one b0 first."""
    k = torch.arange(count, dtype=D) + 0.5
    polar, azimuth = torch.arccos(1 - 2 * k / count), math.pi * (1 + 5**0.5) * k
    g = torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()], -1)
    bvals = torch.cat([torch.zeros(1, dtype=D), torch.full((count,), 1000.0, dtype=D)])
    return bvals, torch.cat([torch.zeros(1, 3, dtype=D), g])


def tensor_field(size=25):
    """(X, Y, Z, 3, 3) smooth tensors whose main direction turns slowly, mm2/s."""
    axis = torch.linspace(-1, 1, size, dtype=D)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    azimuth, tilt = 0.5 * x + 0.3 * z, 0.4 * y
    v = torch.stack([tilt.cos() * azimuth.cos(), tilt.cos() * azimuth.sin(), tilt.sin()], -1)
    return 1.3e-3 * v[..., :, None] * v[..., None, :] + 0.4e-3 * torch.eye(3, dtype=D)


def signal_of(tensors, bvals, g):
    attenuation = torch.einsum("ni,xyzij,nj->nxyz", g, tensors, g)
    return 1000.0 * torch.exp(-bvals[:, None, None, None] * attenuation)


def main_direction(image, bvals, g):
    """(X, Y, Z, 3) principal direction of a log-linear tensor fit."""
    pairs = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    columns = [-bvals * g[:, a] * g[:, b] * (1 if a == b else 2) for a, b in pairs]
    design = torch.stack([torch.ones_like(bvals), *columns], -1)
    fit = torch.linalg.pinv(design) @ image.clamp(min=1e-3).log().flatten(1)
    full = fit[1:][[0, 3, 4, 3, 1, 5, 4, 5, 2]].T.reshape(*image.shape[1:], 3, 3)
    return torch.linalg.eigh(full).eigenvectors[..., -1]


def angle_deg(a, b):
    return torch.rad2deg(torch.arccos((a * b).sum(-1).abs().clamp(max=1)))


def interpolation(bvals, g, rotation, l_max=8):
    """(N, N) signal at R^T g from the signal at g, through spherical harmonics."""
    weights = torch.eye(len(g), dtype=D)
    dwi = torch.nonzero(bvals > 50).flatten()
    seen = g[dwi] @ rotation
    fit = sh_fit_matrix(g[dwi], l_max, smoothing=0.0).to(D)
    block = torch.eye(len(dwi), dtype=D) + (sh_basis(seen, l_max) - sh_basis(g[dwi], l_max)).to(D) @ fit
    weights[dwi[:, None], dwi[None, :]] = block
    return weights


def test_harmonic_interpolation_gives_the_signal_at_turned_gradients():
    bvals, g = scheme()
    rotation = turn(0, 0, 15.0)[0]
    tensors = tensor_field(9)
    turned = turn_signal(signal_of(tensors, bvals, g), weights=interpolation(bvals, g, rotation))
    torch.testing.assert_close(turned, signal_of(tensors, bvals, g @ rotation), rtol=5e-3, atol=0)


def test_motion_and_its_inverse_with_the_right_vectors_restore_the_tensor_field():
    bvals, g = scheme()
    tensors, rotation = tensor_field(), turn(4.0, -3.0, 15.0)
    clean = signal_of(tensors, bvals, g)
    turned = turn_signal(clean, weights=interpolation(bvals, g, rotation[0]))
    poses = rotation.expand(len(bvals), 3, 3)
    moved = move(turned, rotations=poses, translations_mm=still(len(bvals)), spacing_mm=ISO)
    back = move(moved, rotations=poses.mT, translations_mm=still(len(bvals)), spacing_mm=ISO)
    inside = (slice(7, 18),) * 3
    original = main_direction(clean, bvals, g)[inside]
    right = main_direction(back, bvals, g @ rotation[0])[inside]
    assert float(angle_deg(right, original).max()) <= 1.0
    acquired = main_direction(back, bvals, g)[inside]
    expected = (
        original @ rotation[0].T
    )  # with the table left as acquired, every direction is off by the rotation
    assert float(angle_deg(acquired, expected).max()) <= 1.0
    assert float(angle_deg(acquired, original).min()) > 10.0


def test_moved_head_has_its_fibres_turned_with_it():
    bvals, g = scheme()
    tensors, rotation = tensor_field(), turn(0, 0, 15.0)
    turned = turn_signal(signal_of(tensors, bvals, g), weights=interpolation(bvals, g, rotation[0]))
    moved = move(
        turned,
        rotations=rotation.expand(len(bvals), 3, 3),
        translations_mm=still(len(bvals)),
        spacing_mm=ISO,
    )
    centre = main_direction(moved, bvals, g)[12, 12, 12]
    expected = rotation[0] @ main_direction(signal_of(tensors, bvals, g), bvals, g)[12, 12, 12]
    assert float(angle_deg(centre, expected)) < 0.5


def test_interleaved_slices_are_acquired_even_first():
    order = torch.argsort(acquisition_order(8)).tolist()
    assert order == [0, 2, 4, 6, 1, 3, 5, 7]


def test_multiband_slices_are_acquired_together():
    times = acquisition_order(12, multiband=3)
    torch.testing.assert_close(times[:4], times[4:8])
    torch.testing.assert_close(times[:4], times[8:])


def test_motion_within_a_volume_replaces_the_late_slices_of_that_volume():
    image = torch.zeros(3, 4, 5, 6)
    moved = torch.ones(1, 4, 5, 6)
    after = (acquisition_order(6) >= 0.5)[None]
    mixed = shuffle_slices(image, moved=moved, volumes=torch.tensor([1]), after=after)
    assert mixed[1, 0, 0].tolist() == [0, 1, 0, 1, 0, 1]
    assert float(mixed[[0, 2]].abs().max()) == 0.0


def test_gradient_nonlinearity_is_exact_for_gaussian_diffusion():
    bvals, g = scheme(20)
    tensors = tensor_field(7)
    coefficients = torch.randn(9, 9, dtype=D, generator=torch.Generator().manual_seed(0))
    coil = gradient_deviation(coefficients, (7, 7, 7), largest=0.15, like=tensors)
    six = torch.stack([tensors[..., a, b] for a, b in [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]])
    ours = gradient_nonlinearity(
        signal_of(tensors, bvals, g), bvals=bvals, bvecs_voxel=g, tensor=six, deviation=coil
    )
    real = torch.einsum("xyzij,nj->nxyzi", coil, g)  # g(x) = L(x) g, with its own length: b(x) = b |L g|^2
    attenuation = torch.einsum("nxyzi,xyzij,nxyzj->nxyz", real, tensors, real)
    torch.testing.assert_close(ours, 1000.0 * torch.exp(-bvals[:, None, None, None] * attenuation))


def test_gradient_deviation_is_none_at_the_isocentre_and_bounded():
    coil = gradient_deviation(torch.ones(9, 9), (9, 9, 9), largest=0.1)
    torch.testing.assert_close(coil[4, 4, 4], torch.eye(3))
    assert float((coil - torch.eye(3)).abs().max()) == pytest.approx(0.1, rel=1e-5)


def test_volumes_of_one_pose_are_moved_as_each_alone():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(5, 7, 8, 9, generator=generator)
    poses = [0, 1, 1, 0, 0]
    rotations = torch.cat([turn(z=9.0), turn(x=-7.0)])[poses]
    shifts = torch.tensor([[1.0, 0.5, -2.0], [0.0, 3.0, 1.0]], dtype=D)[poses]
    together = move(image, rotations=rotations, translations_mm=shifts, spacing_mm=ISO)
    for v in range(5):
        rows = slice(v, v + 1)
        alone = move(image[rows], rotations=rotations[rows], translations_mm=shifts[rows], spacing_mm=ISO)
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=0)


def test_equal_poses_keep_their_own_gradients():
    image = torch.rand(2, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    shift = torch.full((2, 3), 0.7, dtype=D, requires_grad=True)
    move(image, rotations=turn(count=2), translations_mm=shift, spacing_mm=ISO)[1].square().sum().backward()
    assert float(shift.grad[0].abs().max()) == 0.0
    assert float(shift.grad[1].abs().min()) > 0.1


def test_one_slice_moves_without_a_warning(recwarn):
    image = torch.zeros(1, 9, 9, 1)
    image[0, 4, 4, 0] = 1.0
    shift = torch.tensor([[4.0, 0.0, 0.0]], dtype=D)
    moved = move(image, rotations=turn(), translations_mm=shift, spacing_mm=ISO)
    assert torch.nonzero(moved > 0.999).tolist() == [[0, 6, 4, 0]]
    assert not list(recwarn)


def test_multiband_factor_that_does_not_divide_the_slices_is_named():
    with pytest.raises(ValueError, match="multiband factor 4 does not divide the number of slices 10"):
        acquisition_order(10, multiband=4)


def test_no_motion_is_the_identity():
    image = torch.rand(2, 7, 8, 9, dtype=D)
    moved = move(image, rotations=turn(count=2), translations_mm=still(2), spacing_mm=(2.0, 3.0, 4.0))
    torch.testing.assert_close(moved, image, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turn_signal(image, weights=torch.eye(2)), image)


def test_uniform_coils_change_nothing():
    bvals, g = scheme(5)
    image = signal_of(tensor_field(5), bvals, g)
    same = gradient_nonlinearity(
        image,
        bvals=bvals,
        bvecs_voxel=g,
        tensor=torch.rand(6, 5, 5, 5) * 1e-3,
        deviation=gradient_deviation(torch.ones(9, 9), (5, 5, 5), largest=0.0),
    )
    torch.testing.assert_close(same, image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotations": torch.eye(3, dtype=D).expand(3, 3, 3)}, r"rotations has shape \(3, 3, 3\)"),
        ({"rotations": 2 * torch.eye(3, dtype=D).expand(2, 3, 3)}, "expected rotations"),
        ({"translations_mm": torch.full((2, 3), np.nan)}, "translations_mm is nan"),
        ({"spacing_mm": (2.0, 0.0, 2.0)}, "spacing_mm is"),
    ],
    ids=["count", "scaled", "nan", "spacing"],
)
def test_bad_motion_is_named(change, message):
    good = {"rotations": turn(count=2), "translations_mm": still(2), "spacing_mm": ISO}
    with pytest.raises(ValueError, match=message):
        move(torch.ones(2, 4, 4, 4), **(good | change))


def test_slices_of_a_missing_volume_are_refused():
    with pytest.raises(ValueError, match="volumes: 3 is outside 0 to 1"):
        shuffle_slices(
            torch.ones(2, 4, 4, 4),
            moved=torch.ones(1, 4, 4, 4),
            volumes=torch.tensor([3]),
            after=torch.ones(1, 4).bool(),
        )


def test_interpolation_weights_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"weights has shape \(3, 3\), expected \(3, 2\)"):
        turn_signal(torch.ones(2, 4, 4, 4), weights=torch.eye(3))


def test_motion_is_differentiable_in_image_and_pose():
    image = torch.rand(1, 4, 4, 4, dtype=D).requires_grad_()
    vector = torch.tensor([[0.05, 0.1, -0.08]], dtype=D, requires_grad=True)
    shift = torch.tensor([[0.31, -0.2, 0.11]], dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda i, v, t: move(i, rotations=rotation_matrix(v), translations_mm=t, spacing_mm=ISO),
        (image, vector, shift),
        atol=1e-4,
    )
