"""Spherical deconvolution as a loss: right numbers, least at the truth in the network's frame, and it finds fibres."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from dipy.reconst.csdeconv import AxSymShResponse, ConstrainedSphericalDeconvModel
from monai.data import MetaTensor
from torch import Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

from dmri_monai.gradients import GradientTable
from dmri_monai.losses import SphericalDeconvolutionLoss
from dmri_monai.losses.signal_deconvolution import determined_shares
from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.phantom.voxel_signals import Voxels, draw_batch, draw_voxels, noisy, simulate_voxels
from dmri_monai.qspace.conventions import to_basis
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.fibre_density import DENSITY_IRREPS, density_of_peaks
from dmri_monai.qspace.peaks import harmonic_peaks
from dmri_monai.qspace.shell_response import nominal_response
from dmri_monai.qspace.shell_set import shell_channels, shell_irreps, shell_set
from dmri_monai.so3 import sh_basis
from dmri_monai.testing import act_on_field, cube_rotations
from dmri_monai.transforms import SphericalHarmonicsd, turn_directions
from tests.conftest import ORIENTATIONS, grid_affine

BUNDLE = 7  # planes of one coherent bundle, which the response of a scan is taken from
SNR = 30.0
DATA_ALONE = {"negative": 0.0, "mean": 0.0, "power": 0.0}
SHELLS = [{1000.0: 32, 2500.0: 60}, {3000.0: 64}, {1000.0: 30}]


def table(shells: dict[float, int]) -> GradientTable:
    bvals = torch.cat([torch.zeros(3), *(torch.full((n,), b) for b, n in shells.items())]).double()
    vectors = [torch.zeros(3, 3, dtype=torch.float64), *(spread_directions(n) for n in shells.values())]
    return GradientTable(bvals, torch.cat(vectors))


def drawn_axes(degrees: float | None, count: int, seed: int = 0) -> Tensor:
    """(count, 3, 3) unit vectors, of which the second lies `degrees` from the first."""
    drawn = torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(seed))
    first = normalize(drawn[:, 0], dim=1)
    aside = normalize(drawn[:, 1] - (drawn[:, 1] * first).sum(1, keepdim=True) * first, dim=1)
    angle = math.radians(degrees or 0.0)
    return torch.stack([first, math.cos(angle) * first + math.sin(angle) * aside, first], dim=1)


def white_matter(axes: Tensor, crossing: Tensor) -> Voxels:
    """One kind of white matter, with the fibres `axes` (V, 3, 3); equal shares where two cross."""
    one = draw_voxels(1, torch.Generator().manual_seed(2))
    voxels = {name: tensor.expand(len(axes), *tensor.shape[1:]).clone() for name, tensor in vars(one).items()}
    voxels["fractions"] = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(len(axes), 4).clone()
    voxels["shares"] = torch.stack([1 - crossing / 2, crossing / 2, torch.zeros_like(crossing)], dim=1)
    voxels["spread"] = torch.zeros(len(axes), 3)
    return Voxels(**{**voxels, "directions": axes, "lobes": sh_basis(axes, 12)})


def scan(
    axes: Tensor, crosses: bool, shells: dict[float, int], affine: Tensor, snr: float = SNR
) -> tuple[Tensor, Tensor, Tensor]:
    """Channels (1, C, V, 5, 5) and the true density (1, 45, V, 5, 5), both in the frame of the voxels, and its turn.

    Fibres `axes` (V, 3, 3) in the world; noise, and the response of a bundle that is cut off again.
    """
    gradients, generator = table(shells), torch.Generator().manual_seed(1)
    bundle = torch.tensor([0.6, 0.0, 0.8]).expand(BUNDLE, 3, 3)
    number = torch.cat([torch.zeros(BUNDLE), torch.full((len(axes),), float(crosses))])
    voxels = white_matter(torch.cat([bundle, axes]), number)
    signal = simulate_voxels(voxels, gradients.bvals, gradients.bvecs).T[..., None, None].expand(-1, -1, 5, 5)
    image = 900 * noisy(signal / signal[:3].mean(), 1 / snr, generator)
    item = {"image": MetaTensor(image, affine=affine), "bvals": gradients.bvals, "bvecs": gradients.bvecs}
    encoded = SphericalHarmonicsd("image", "auto", 6, rescale=True)(item)["image"]
    rotation = torch.as_tensor(encoded.meta["voxel_frame"]).double()
    world = voxels.orientation_density().T[..., None, None].expand(-1, -1, 5, 5)
    density = turn_directions(world, DENSITY_IRREPS, rotation.T)
    return encoded.as_tensor()[None, :, BUNDLE:], density[None, :, BUNDLE:].float(), rotation


@pytest.mark.parametrize("bval", [1000.0, 3000.0])
def test_the_convolution_is_dipys(bval):
    """DIPY convolves a density of two fibres with the nominal response; the loss knows no better explanation."""
    gradients = table({bval: 90})
    peaks = torch.tensor([0.5, 0.0, 0.0, 0.0, 0.24, 0.32], dtype=torch.float64)
    density = density_of_peaks(peaks[:, None, None, None])
    response = AxSymShResponse(1.0, nominal_response(torch.tensor([bval]), 8)[0].numpy(), bvalue=bval)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on DIPY's coming change of its default basis
        model = ConstrainedSphericalDeconvModel(gradients.to_dipy(), response, sh_order_max=8)
        signal = model.predict(to_basis(density[:, 0, 0, 0], "descoteaux07", legacy=True).numpy())
    image = torch.as_tensor(signal).view(-1, 1, 1, 1)
    own = shell_set(gradients.bvals, gradients.bvecs)
    channels = shell_channels(image, gradients.bvals, own)[None].double()
    loss = SphericalDeconvolutionLoss(**DATA_ALONE).double()
    explained = float(loss(density[None], channels))
    assert explained < 1e-5
    # a wrong coefficient costs what the response of its degree makes of it
    for first, degree in ((1, 2), (6, 4), (15, 6)):
        wrong = density.clone()
        wrong[first] += 0.3
        factors = nominal_response(torch.tensor([bval]), 6)[0] * torch.tensor([1.0, 5, 9, 13]).rsqrt()
        shrunk = [1 / (1 + 1e-3 * (one * (one + 1)) ** 2) for one in (2, degree)]
        ratio = float(factors[degree // 2] / factors[1]) * shrunk[1] / shrunk[0]
        assert float(loss(wrong[None], channels)) == pytest.approx((0.3 * ratio) ** 2, rel=0.03, abs=1e-5)
    assert float(loss(density[None].flip(1), channels)) > 100 * explained


@pytest.mark.parametrize("orientation", ["axial", "oblique-right", "oblique-left"])
@pytest.mark.parametrize("crosses", [False, True], ids=["one", "crossing"])
@pytest.mark.parametrize("shells", SHELLS, ids=["two shells", "b3000", "b1000"])
def test_it_is_least_at_the_truth_in_the_frame_of_the_network(orientation, crosses, shells):
    affine = _affine(orientation)
    axes = drawn_axes(90.0, 12)
    channels, density, rotation = scan(axes, crosses, shells, affine)
    loss = SphericalDeconvolutionLoss()
    least = float(loss(density, channels))
    others = {"nothing": torch.zeros_like(density), "no direction": _isotropic(density)}
    others |= {"half of it": 0.5 * density, "too much": 1.5 * density}
    others |= {
        f"axis {axis} flipped": turn_directions(density[0], DENSITY_IRREPS, _flip(axis))[None]
        for axis in range(3)
    }
    if crosses:
        others["one fibre of two"] = scan(axes, False, shells, affine)[1]
    else:
        others["two fibres for one"] = scan(axes, True, shells, affine)[1]
    if orientation != "axial":
        others["the world's frame"] = turn_directions(density[0], DENSITY_IRREPS, rotation)[None]
    for name, other in others.items():
        assert float(loss(other, channels)) > 1.1 * least, name
    turned = [float(loss(_turned(density, degrees), channels)) for degrees in (5.0, 10.0, 20.0)]
    assert least < turned[0] < turned[1] < turned[2]


def _affine(name: str) -> Tensor:
    if name == "axial":
        return torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    return torch.as_tensor(np.asarray(grid_affine(ORIENTATIONS[name], (2.0, 1.5, 4.0))))


def _isotropic(density: Tensor) -> Tensor:
    return torch.cat([density[:, :1], torch.zeros_like(density[:, 1:])], dim=1)


def _flip(axis: int) -> Tensor:
    mirror = torch.eye(3, dtype=torch.float64)
    mirror[axis, axis] = -1
    return mirror


def _turned(density: Tensor, degrees: float) -> Tensor:
    angle, axis = math.radians(degrees), normalize(torch.tensor([1.0, -0.7, 0.4]).double(), dim=0)
    cross = torch.linalg.cross(torch.eye(3, dtype=torch.float64), axis.expand(3, 3)).T
    return turn_directions(density[0], DENSITY_IRREPS, torch.linalg.matrix_exp(-angle * cross))[None]


@pytest.mark.parametrize(
    ("shells", "degrees", "within"),
    [
        ({1000.0: 12}, None, 6.0),
        ({1000.0: 30}, None, 4.0),
        ({1000.0: 32, 2500.0: 60}, None, 4.0),
        ({3000.0: 64}, 70.0, 8.0),
        ({1000.0: 32, 2500.0: 60}, 90.0, 8.0),
    ],
)
def test_descent_of_the_density_alone_finds_the_fibres(shells, degrees, within):
    axes = drawn_axes(degrees, 12)
    channels, _, rotation = scan(axes, degrees is not None, shells, _affine("oblique-left"))
    channels = channels[..., 2:3, 2:3]
    density = torch.zeros(1, 45, 12, 1, 1)
    density[:, 0] = 0.1
    density.requires_grad_()
    loss = SphericalDeconvolutionLoss()
    optimizer = torch.optim.Adam([density], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss(density, channels).backward()
        optimizer.step()
    found = harmonic_peaks(density.detach()[0, :, :, 0, 0], separation_degrees=25.0).directions
    fibres = axes[:, : 1 if degrees is None else 2].double() @ rotation  # into the frame of the voxels
    nearest = torch.stack(
        [
            torch.stack(
                [axial_angle_deg(found[:, i].double(), fibres[:, j]) for i in range(fibres.shape[1])]
            ).amin(0)
            for j in range(fibres.shape[1])
        ]
    )
    assert float(nearest.median()) < within / 2
    assert float(nearest.max()) < 2 * within
    unturned = axial_angle_deg(found[:, 0].double(), axes[:, 0].double())
    assert float(unturned.median()) > 2 * within  # the control: those are the world's axes


def test_turning_density_and_shells_together_changes_nothing():
    channels, density, _ = scan(drawn_axes(60.0, 4), True, {1000.0: 20, 2500.0: 40}, _affine("oblique-left"))
    channels, density, loss = channels.double(), density.double(), SphericalDeconvolutionLoss().double()
    value = float(loss(density, channels))
    for one in (1, 9, 30, 44):
        turn = cube_rotations(reflections=True)[one].double()
        shells = act_on_field(turn, channels, shell_irreps(4, 6))
        together = act_on_field(turn, density, DENSITY_IRREPS)
        assert float(loss(together, shells)) == pytest.approx(value, rel=1e-9)
        assert float(loss(act_on_field(turn, density, DENSITY_IRREPS).flip(1), shells)) > 1.5 * value


def test_the_mean_signal_bounds_the_mass_from_above_alone():
    batch = draw_batch(0, 1, 8, rescaled=True).channels[None, :, :, None, None]
    loss = SphericalDeconvolutionLoss(negative=0.0, power=0.0)
    density = torch.zeros(1, 45, 8, 1, 1)
    without = loss(density, batch)
    density[:, 0] = 0.02
    assert_close(loss(density, batch), without)
    density[:, 0] = 3.0
    assert float(loss(density, batch)) > float(without) + 0.01


def test_penalties_are_integrals_over_the_sphere():
    batch = draw_batch(0, 1, 8, rescaled=True).channels[None, :, :, None, None]
    density = torch.zeros(1, 45, 8, 1, 1)
    density[:, 0] = -0.4
    loss = SphericalDeconvolutionLoss
    negative = loss(negative=1.0, mean=0.0, power=0.0)(density, batch)
    assert_close(negative - loss(**DATA_ALONE)(density, batch), torch.tensor(0.4**2))
    density[:, 7] = 0.5
    power = loss(negative=0.0, mean=0.0, power=2.0)(density, batch)
    assert_close(power - loss(**DATA_ALONE)(density, batch), torch.tensor(2 * 0.5**2))


def test_voxels_without_signal_outside_the_mask_or_unknown_and_absent_slots_do_not_count():
    channels, density, _ = scan(drawn_axes(60.0, 4), True, {1000.0: 20, 2500.0: 40}, _affine("axial"))
    loss, slots = SphericalDeconvolutionLoss(), 4
    expected = loss(density[:, :, 1:], channels[:, :, 1:])
    spoilt = density.clone()
    spoilt[:, :, 0] = 99.0
    mask = torch.ones(1, 1, *density.shape[2:])
    mask[:, :, 0] = 0
    air, unknown = channels.clone(), channels.clone()
    air[:, 1 : 1 + slots, 0] = 0.0
    air[:, 1 + 4 * slots :, 0] = 0.0
    unknown[:, :, 0] = torch.nan
    for value in (loss(spoilt, channels, mask), loss(spoilt, air), loss(spoilt, unknown)):
        assert_close(value, expected)
    spoilt.requires_grad_()
    loss(spoilt, unknown).backward()
    assert spoilt.grad.isfinite().all()
    assert float(spoilt.grad[:, :, 0].abs().max()) == 0
    assert float(spoilt.grad[:, :, 1:].abs().max()) > 0
    two = shell_set(table({1000.0: 20}).bvals, table({1000.0: 20}).bvecs, slots=2)
    image = torch.rand(23, 2, 2, 2, generator=torch.Generator().manual_seed(0)) + 0.5
    few = shell_channels(image, table({1000.0: 20}).bvals, two)[None]
    more = shell_channels(image, table({1000.0: 20}).bvals, _four(two))[None]
    assert_close(loss(density[..., :2, :2, :2], few), loss(density[..., :2, :2, :2], more))
    assert float(loss(density, torch.zeros_like(channels))) == 0


def _four(shells):
    zeros = torch.zeros_like(shells.matrix)
    pad = torch.zeros_like(shells.bvals)
    return type(shells)(
        torch.cat([shells.matrix, zeros]), torch.cat([shells.bvals, pad]), torch.cat([shells.counts, pad])
    )


def test_half_precision_is_computed_in_single():
    channels, density, _ = scan(drawn_axes(60.0, 4), True, {1000.0: 20, 2500.0: 40}, _affine("axial"))
    coarse = density.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = SphericalDeconvolutionLoss()(coarse, channels)
    value.backward()
    assert value.dtype == torch.float32
    assert coarse.grad.isfinite().all()
    assert_close(value.detach(), SphericalDeconvolutionLoss()(coarse.detach().float(), channels))


def test_few_directions_determine_low_degrees_and_what_they_do_not_is_free():
    shares = determined_shares(torch.tensor([6.0, 12.0, 15.0, 100.0]), 6)
    assert shares.T.tolist() == [[1, 1, 0, 0], [1, 1, pytest.approx(2 / 3), 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    for n in (
        9,
        12,
        20,
        30,
        60,
    ):  # what the fit of the shells leaves of each degree, of well-spread directions
        own, basis = table({1000.0: n}), sh_basis(spread_directions(n), 6)
        kept = (shell_set(own.bvals, own.bvecs, slots=1).matrix[0][:, 3:] @ basis).diagonal()
        means = torch.stack([part.mean() for part in kept.split([1, 5, 9, 13])])
        degrees = torch.arange(0, 7, 2).double()
        expected = determined_shares(torch.tensor([float(n)]).double(), 6)[:, 0]
        assert_close(means, expected / (1 + 1e-3 * (degrees * (degrees + 1)) ** 2), atol=0.12, rtol=0)
    channels, density, _ = scan(drawn_axes(None, 4), False, {1000.0: 12}, _affine("axial"))
    loss, other = SphericalDeconvolutionLoss(**DATA_ALONE), density.clone()
    other[:, 15:] += 0.5  # l = 6 and 8
    assert_close(loss(other, channels), loss(density, channels))
    other[:, 6:15] += 0.5
    assert float(loss(other, channels)) > float(loss(density, channels))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l_max": 3}, "l_max of the shells is 3"),
        ({"l_max": 0}, "l_max of the shells is 0"),
        ({"power": -1.0}, "power -1.0"),
        ({"negative": -1.0}, "negative -1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SphericalDeconvolutionLoss(**options)


def test_shapes_and_channels_that_do_not_fit_are_named():
    loss, channels = SphericalDeconvolutionLoss(), torch.zeros(1, 125, 3, 4, 5)
    with pytest.raises(
        ValueError, match=r"density has shape \(1, 28, 3, 4, 5\), expected \(1, 45, 3, 4, 5\)"
    ):
        loss(torch.zeros(1, 28, 3, 4, 5), channels)
    with pytest.raises(ValueError, match="124 channels are not 1 \\+ 31 for every slot"):
        loss(torch.zeros(1, 45, 3, 4, 5), channels[:, :124])
    with pytest.raises(ValueError, match="mask has shape"):
        loss(torch.zeros(1, 45, 3, 4, 5), channels, torch.ones(1, 1, 3, 4, 4))
