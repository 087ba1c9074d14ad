"""Deconvolution of rescaled shells: sharp, nowhere negative, in the right frame, at least as good as DIPY's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.nn.functional import normalize
from torch.testing import assert_close

from dmri_monai.equivariant import ShellEncoder
from dmri_monai.gradients import GradientTable
from dmri_monai.inference.encoding import encode_scan
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.networks.fibre_deconvolution import FibreDeconvolution
from dmri_monai.networks.voxelwise import VoxelwiseNet
from dmri_monai.phantom.voxel_signals import draw_batch, draw_voxels, noisy, simulate_voxels
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.peaks import harmonic_peaks
from dmri_monai.qspace.shell_response import nominal_response, zonal_response
from dmri_monai.qspace.shell_set import shell_channels, shell_irreps, shell_set
from dmri_monai.reference.deconvolution import (
    PeakRule,
    deconvolution_shell,
    find_peaks,
    single_shell_model,
)
from dmri_monai.so3 import sh_basis
from dmri_monai.testing import assert_equivariant, cube_rotations
from dmri_monai.transforms import SphericalHarmonicsd

DENSITY = "1x0e+1x2e+1x4e+1x6e+1x8e"
# anisotropic, oblique, right- and left-handed
TURN = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
BUNDLE = 7  # voxels long
AFFINES = [np.diag([2.0, 2.0, 3.0, 1.0]), np.eye(4), np.eye(4)]
AFFINES[1][:3, :3] = TURN * np.sign(np.linalg.det(TURN)) @ np.diag([2.0, 1.5, 4.0])
AFFINES[2][:3, :3] = -AFFINES[1][:3, :3]


def table(shells: dict[float, int]) -> GradientTable:
    bvals = torch.cat([torch.zeros(3), *(torch.full((n,), b) for b, n in shells.items())]).double()
    vectors = [torch.zeros(3, 3, dtype=torch.float64), *(spread_directions(n) for n in shells.values())]
    return GradientTable(bvals, torch.cat(vectors))


def crossing(bvals: torch.Tensor, bvecs: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """(N, V) signal of equal shares of the fibres along axes (V, F, 3): tensors with the nominal fibre's contrast."""
    b = (bvals / 1000).view(-1, 1, 1)
    cosine = torch.einsum("ni,vfi->nvf", bvecs.double(), axes.double())
    return torch.exp(-b * (0.45 + 1.0 * cosine.square())).mean(2)


def pairs(degrees: float, count: int, seed: int = 0) -> torch.Tensor:
    """(count, 2, 3) unit vectors at an angle."""
    drawn = torch.randn(count, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    first = normalize(drawn[:, 0], dim=1)
    aside = normalize(drawn[:, 1] - (drawn[:, 1] * first).sum(1, keepdim=True) * first, dim=1)
    angle = math.radians(degrees)
    return torch.stack([first, math.cos(angle) * first + math.sin(angle) * aside], dim=1)


def volume(axes: torch.Tensor, gradients: GradientTable) -> torch.Tensor:
    """(N, BUNDLE + V, 5, 5): a coherent bundle, of which the response is taken, then a plane of each crossing."""
    bundle = torch.tensor([[[0.6, 0.0, 0.8]] * 2] * BUNDLE, dtype=torch.float64)
    signal = crossing(gradients.bvals, gradients.bvecs, torch.cat([bundle, axes]))[..., None, None]
    return 900 * signal.expand(-1, -1, 5, 5)


def density(item: torch.Tensor) -> torch.Tensor:
    """(45, ...) of channels (C, ...)."""
    encoder = ShellEncoder(2, scalars=4, l_max=6)
    return FibreDeconvolution()(encoder.parts(item.flatten(1).unsqueeze(0)))[0]


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("shells", [{1000.0: 32, 2500.0: 60}, {3000.0: 64}])
def test_crossings_are_found_in_the_world_frame(affine, shells):
    axes, gradients = pairs(60.0, 12), table(shells)
    image = MetaTensor(volume(axes, gradients), affine=affine)
    item = {"image": image, "bvals": gradients.bvals, "bvecs": gradients.bvecs}
    encoded = SphericalHarmonicsd("image", "auto", 6, rescale=True)(item)["image"]
    found = harmonic_peaks(density(encoded.as_tensor()[:, BUNDLE:, 2, 2]), separation_degrees=25.0)
    to_voxel = gradients.in_voxel_frame(torch.as_tensor(affine))  # world -> voxel, as the table turns
    rotation = torch.linalg.lstsq(gradients.bvecs[3:], to_voxel[3:]).solution
    world = found.directions[:, :2].double() @ rotation.T
    assert worst(world, axes) < 8.0
    if affine is not AFFINES[0]:
        assert worst(found.directions[:, :2].double(), axes) > 20.0  # left in the frame of the voxels


def worst(found: torch.Tensor, axes: torch.Tensor) -> float:
    """Largest angle between a true axis and the nearest found one."""
    angles = torch.stack([axial_angle_deg(found[:, i], axes[:, j]) for i in (0, 1) for j in (0, 1)])
    return float(angles.unflatten(0, (2, 2)).amin(0).max())


def test_more_of_the_peaks_are_found_than_by_dipys_deconvolution():
    """In white matter as it is drawn for training, one shell, each method with the response of coherent voxels."""
    generator, gradients = torch.Generator().manual_seed(5), table({1500.0: 24})
    voxels = draw_voxels(1200, generator)
    signal = noisy(simulate_voxels(voxels, gradients.bvals, gradients.bvecs), 1 / 30, generator)
    _, true = voxels.peaks()
    number = (true.norm(dim=2) >= 0.25 * true.norm(dim=2)[:, :1]).sum(1)
    crossings = (voxels.fractions[:, 0] > 0.7) & (number > 1)
    axes = normalize(true, dim=2)[:, :2].double()
    coherent = (voxels.fractions[:, 0] > 0.9) & (number == 1) & (voxels.spread[:, 0] < 0.03)
    shells = shell_set(gradients.bvals, gradients.bvecs)
    image = signal.T[:, :, None, None]
    plain = shell_channels(image, gradients.bvals, shells, reference=1.0).flatten(1)
    fitted = torch.cat([plain[1:5], plain[17:]])[:, coherent]
    response = zonal_response(fitted, 4, voxels.directions[coherent, 0])
    rescaled = shell_channels(image, gradients.bvals, shells, reference=1.0, response=response)
    found = harmonic_peaks(density(rescaled), relative=0.25, separation_degrees=25.0).directions
    ours = recall(found[crossings].double(), axes[crossings])
    volumes = (1000 * signal).double().numpy()[:, None, None]
    white = coherent.numpy()[:, None, None]
    (shell,) = gradients.shells()
    model, part = single_shell_model(volumes, gradients, white, shell, deconvolution_shell(gradients)[1])
    peaks, _ = find_peaks(model, part, crossings.numpy()[:, None, None], white, PeakRule())
    theirs = recall(torch.from_numpy(peaks[crossings.numpy(), 0, 0]).nan_to_num().double(), axes[crossings])
    assert theirs > 0.4
    assert ours > theirs


def recall(found: torch.Tensor, axes: torch.Tensor) -> float:
    near = torch.einsum("vic,vjc->vij", found, axes).abs() >= math.cos(math.radians(20))
    return float(near.any(1).double().mean())


def test_it_commutes_with_the_cube_and_closely_with_every_rotation():
    batch = draw_batch(0, 2, 16, slots=2, rescaled=True)
    x = batch.channels.double().view(1, -1, 4, 4, 2)
    encoder = ShellEncoder(2, scalars=4, l_max=6).double()
    layer = FibreDeconvolution().double()

    def module(image: torch.Tensor) -> torch.Tensor:
        return layer(encoder.parts(image.flatten(2))).unflatten(2, image.shape[2:])

    group = [cube_rotations(reflections=True)[i] for i in (1, 9, 30, 44)]
    assert_equivariant(module, x, shell_irreps(2, 6), DENSITY, group, rtol=1e-8)
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(lambda i: module(i).relu(), x, shell_irreps(2, 6), DENSITY, group, rtol=1e-2)


def test_density_is_hardly_negative_and_would_be_without_the_steps():
    batch = draw_batch(1, 4, 32, rescaled=True)
    white = batch.fractions[0] > 0.8
    layer, encoder = FibreDeconvolution(), ShellEncoder(2, scalars=4, l_max=6)
    directions = sh_basis(spread_directions(200), 8).float()

    def lowest() -> float:
        values = directions @ layer(encoder.parts(batch.channels.unsqueeze(0)))[0][:, white]
        return float((values.amin(0) / values.amax(0)).median())

    constrained = lowest()
    layer.steps = 0
    assert constrained > -0.1
    assert lowest() < 2 * constrained - 0.05


def test_what_it_finds_resembles_the_truth_more_than_the_first_step_does():
    batch = draw_batch(2, 8, 32, rescaled=True)
    white = batch.fractions[0] > 0.8
    layer, encoder = FibreDeconvolution(), ShellEncoder(2, scalars=4, l_max=6)

    def resemblance() -> float:
        found = layer(encoder.parts(batch.channels.unsqueeze(0)))[0][6:28, white]
        return float(
            torch.corrcoef(torch.stack([found.flatten(), batch.density[6:28, white].flatten()]))[0, 1]
        )

    whole = resemblance()
    layer.steps = 0
    assert whole > 0.6
    assert whole > resemblance() + 0.1


def test_absent_slots_and_half_precision_change_little():
    batch = draw_batch(3, 1, 64, slots=2, rescaled=True)
    layer, encoder = FibreDeconvolution(), ShellEncoder(2, scalars=4, l_max=6)
    harmonics, b, log_n, presence = encoder.parts(batch.channels.unsqueeze(0))
    whole = layer((harmonics, b, log_n, presence))
    more = [
        torch.cat([part, torch.zeros_like(part[:, :1])], dim=1) for part in (harmonics, b, log_n, presence)
    ]
    assert_close(layer((more[0], more[1], more[2], more[3])), whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = layer((harmonics, b, log_n, presence))
    assert coarse.dtype == torch.float32
    assert_close(coarse, whole)


def test_its_kernel_is_the_nominal_response():
    """Up to what the regularised fit of shells shrinks."""
    b = torch.tensor([0.7, 2.0, 3.0], dtype=torch.float64)
    degrees = torch.arange(0, 7, 2).double()
    kernel = FibreDeconvolution().double().kernel(b.view(1, 3, 1))[0, :, :, 0]
    shrunk = 1 / (1 + 1e-3 * (degrees * (degrees + 1)) ** 2)
    expected = nominal_response(1000 * b, 6) * (4 * math.pi / (2 * degrees + 1)).sqrt() * shrunk
    assert_close(kernel, expected)


@pytest.mark.parametrize("deconvolution", [True, False])
def test_a_model_that_deconvolves_and_no_other_has_its_scans_rescaled(deconvolution):
    options = {"deconvolution": deconvolution}
    spec = ModelSpec(task="fod", architecture="any", network_options=options, spacing_mm=None)
    gradients = table({1000.0: 30})
    image = volume(pairs(60.0, 4), gradients)
    item = {"image": MetaTensor(image, affine=np.eye(4)), "bvals": gradients.bvals, "bvecs": gradients.bvecs}
    (transform,) = encode_scan(spec)
    found = transform(item)["image"].as_tensor()
    own = shell_set(gradients.bvals, gradients.bvecs, slots=spec.slots, l_max=spec.l_max)
    rescaled = shell_channels(image, gradients.bvals, own, response="scan")
    plain = shell_channels(image, gradients.bvals, own)
    assert_close(found, rescaled if deconvolution else plain, atol=1e-5, rtol=1e-5)
    assert (rescaled - plain).abs().max() > 0.02


@pytest.mark.parametrize(
    "settings",
    [
        {"network_options": {"deconvolution": "no"}},
        {"network_options": {"deconvolution": 2}},
        {"network_options": {"deconvolution": True, "channels": 1}},
        {"network_options": {"deconvolution": True}, "l_max": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValueError, match="deconvolution"):
        ModelSpec.of({"task": "fod", "architecture": "any", **settings})


def test_a_network_with_it_is_exported_unchanged_and_its_density_is_part_of_the_functions():
    torch.manual_seed(0)
    network = VoxelwiseNet(3, 6, 4, 2, deconvolution=True).eval()
    x = draw_batch(4, 1, 32, rescaled=True).channels.unsqueeze(0)
    script = torch.jit.script(network.features)
    with torch.no_grad():
        for ours, theirs in zip(network.features(x), script(x), strict=True):
            assert_close(ours, theirs)
    assert not any("deconvolution" in name for name in network.state_dict())  # nothing is learned in it
