import sys

import numpy as np
import pytest
import torch

from dmri_monai.phantom import make_subject
from dmri_monai.phantom.mni.potential import potential

pytest.importorskip("nilearn", reason="the MNI152 template stands in nilearn's wheel")
from dmri_monai.phantom.mni import load_template, tracts
from dmri_monai.phantom.mni.diffeomorphism import Diffeomorphism
from dmri_monai.phantom.mni.populations import fibre_populations
from dmri_monai.phantom.mni.template import _continued

POINTS = torch.from_numpy(np.random.default_rng(1).uniform(-60, 60, (300, 3)))


def test_without_nilearn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ValueError, match=r"dmri-monai\[phantom\]"):
        load_template.__wrapped__()


def test_unknown_anatomy_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown anatomy 'mni'"):
        make_subject(1, anatomy="mni")


def test_harmonic_potential_between_two_spheres_is_that_of_a_charge():
    x = np.arange(41) - 20.0
    radius = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
    phi = potential(radius < 6, radius > 18, iterations=200)
    between = (radius > 7) & (radius < 17)
    slope, offset = np.polyfit(1 / radius[between], phi[between], 1)
    assert slope < 0
    np.testing.assert_allclose(phi[between], slope / radius[between] + offset, atol=0.03)


def test_fan_goes_on_in_flat_regions_as_at_the_nearest_point():
    rng = np.random.default_rng(0)
    fan = np.zeros((3, 9, 7, 8), np.float32)
    known = np.array([[1, 1, 1], [7, 2, 6], [4, 5, 3]])
    fan[:, *known.T] = rng.normal(size=(3, 3))
    where = np.argwhere(np.ones(fan.shape[1:]))
    distances = np.linalg.norm(where[:, None] - known, axis=2)
    clear = np.diff(np.sort(distances, axis=1)[:, :2], axis=1)[:, 0] > 0  # one point is nearest
    expected = fan[:, *known[distances.argmin(axis=1)].T]
    np.testing.assert_array_equal(_continued(fan)[:, *where.T][:, clear], expected[:, clear])


def test_fibre_populations_of_white_matter_have_directions():
    x, y, z = (torch.arange(low, high, 4.0) for low, high in ((-70, 70), (-100, 70), (-60, 80)))
    points = torch.cartesian_prod(x, y, z)
    white = points[load_template().tissue.at(points)[:, 0] > 0.5]
    shares, directions = fibre_populations(load_template(), white)
    norms = directions.norm(dim=2)[shares > 0]
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_brain_of_the_template_is_where_mni_coordinates_say():
    places = torch.tensor([[0.0, 0, 25], [22, -13, 4], [9, 8, 14], [0, -18, 90], [-45, -20, 58]])
    brain, ventricle = load_template().shape.at(places)[:, :2].unbind(1)
    assert (brain > 0).tolist() == [True, True, True, False, True]
    white, grey = load_template().tissue.at(places).unbind(1)
    assert white[0] > 0.9
    assert white[1] > 0.8
    assert ventricle[2] > -2
    assert (white + grey)[3] == 0
    assert grey[4] > 0.4


@pytest.mark.parametrize("name", sorted({t.name for t in tracts()}))
def test_bundle_runs_through_white_matter_inside_the_brain(name):
    (tract,) = (t for t in tracts() if t.name == name)
    white = load_template().tissue.at(tract.points)[:, 0]
    assert float((white > 0.35).float().mean()) > 0.45
    assert float((load_template().shape.at(tract.points)[:, 0] > 0).float().mean()) > 0.9


@pytest.mark.parametrize(
    ("place", "direction"),
    [
        pytest.param((0, 0, 24), (1, 0, 0), id="body of the corpus callosum"),
        pytest.param((22, -13, 4), (0.1, 0, 1), id="posterior limb of the internal capsule"),
        pytest.param((-10, -5, 37), (0, 1, 0), id="left cingulum"),
        pytest.param((0, -18, -33), (1, 0, 0), id="middle cerebellar peduncle in the pons"),
        pytest.param((44, -36, -14), (0, 1, -0.3), id="inferior longitudinal"),
        pytest.param((-33, -10, 36), (0, 1, 0), id="left superior longitudinal"),
    ],
)
def test_largest_fibre_population_follows_known_anatomy(place, direction):
    shares, directions = fibre_populations(load_template(), torch.tensor([place], dtype=torch.float32))
    expected = torch.nn.functional.normalize(torch.tensor(direction, dtype=torch.float32), dim=0)
    assert float((directions[0, 0] @ expected).abs()) > np.cos(np.deg2rad(25))
    assert float(shares[0, 0]) > 0.4


def test_atlas_is_symmetric():
    right = torch.from_numpy(np.random.default_rng(0).uniform((5, -80, -20), (50, 50, 60), (400, 3))).float()
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    density = {t.name: d for t, d in zip(tracts(), _densities(right), strict=True)}
    mirrored = {t.name: d for t, d in zip(tracts(), _densities(right * mirror), strict=True)}
    for name, values in density.items():
        other = name.replace("_right", "_LEFT").replace("_left", "_right").replace("_LEFT", "_left")
        torch.testing.assert_close(values, mirrored[other], rtol=0, atol=1e-3)


def _densities(points: torch.Tensor) -> torch.Tensor:
    from dmri_monai.phantom.mni.populations import bundle_densities

    return bundle_densities(points)


def test_jacobian_of_the_diffeomorphism_is_its_derivative():
    warp, step = Diffeomorphism.draw(np.random.default_rng(0)), 1e-4
    for axis in range(3):
        offset = torch.zeros(3, dtype=torch.float64)
        offset[axis] = step
        numeric = (warp.to_template(POINTS + offset) - warp.to_template(POINTS - offset)) / (2 * step)
        torch.testing.assert_close(warp.jacobian(POINTS)[:, :, axis], numeric, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_diffeomorphism_never_folds(seed):
    warp = Diffeomorphism.draw(np.random.default_rng(seed))
    assert float(torch.linalg.det(warp.jacobian(POINTS)).min()) > 0.05


def test_directions_turn_with_the_diffeomorphism_as_short_steps_do():
    warp = Diffeomorphism.draw(np.random.default_rng(0))
    direction = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0, -1.0]]).double())
    world = warp.directions_to_world(POINTS, direction.expand(len(POINTS), 1, 3))[:, 0]
    moved = warp.to_template(POINTS + 1e-4 * world) - warp.to_template(POINTS - 1e-4 * world)
    cosine = torch.nn.functional.normalize(moved) @ direction[0]
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-6)
