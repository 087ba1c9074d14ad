"""The signal of the MNI152 phantom against independent implementations: DIPY's tensor and CSD, Legendre sums."""

import dataclasses

import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.data import get_sphere
from dipy.reconst.csdeconv import ConstrainedSphericalDeconvModel
from dipy.reconst.dti import TensorModel
from scipy.special import eval_legendre

from dmri_monai.gradients import GradientTable, grid_rotation
from dmri_monai.phantom import Contrast, Microstructure, make_subject, shell_table, simulate
from dmri_monai.phantom.fields import rotation
from dmri_monai.phantom.mni.mni_signal import even_harmonics, simulate_by_harmonics

SHAPE = (34, 42, 30)
OBLIQUE = rotation(np.random.default_rng(3), 25.0)
GRIDS = [
    pytest.param(np.diag([5.0, 5.0, 5.0]), id="right-handed"),
    pytest.param(OBLIQUE @ np.diag([-5.0, 5.0, 5.0]), id="oblique-left-handed"),
    pytest.param(OBLIQUE @ np.diag([4.5, 5.0, 6.0]), id="oblique-right-handed-anisotropic"),
]
SINGLE = 0.94  # of the voxel: one population is alone, all others together stay below 6 %
MAX_FA_ERROR = 0.02
MAX_DEGREES = 2.0


def table(n: int, seed: int = 0, b: float = 1000.0) -> GradientTable:
    return shell_table(np.random.default_rng(seed), {b: n}, n_b0=1, jitter=0.0)


def centred(linear: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ (np.array(shape) - 1) / 2
    return torch.from_numpy(affine)


def dipy_table(scheme: GradientTable, affine: torch.Tensor):
    return gradient_table(scheme.bvals.numpy(), bvecs=scheme.in_voxel_frame(affine).numpy(), b0_threshold=50)


def micro_of(n: int, **changes: torch.Tensor) -> Microstructure:
    """`n` voxels that one population fills: no other tissue, no dispersion, no water inside axons."""
    directions = torch.nn.functional.normalize(
        torch.from_numpy(np.random.default_rng(2).normal(size=(n, 3))), dim=1
    )
    zeros, ones = torch.zeros(n).double(), torch.ones(n).double()
    volumes = torch.stack([ones, zeros, zeros], dim=1)
    parts = {"fibre_volumes": volumes, "fibre_directions": directions.unsqueeze(1).repeat(1, 3, 1)}
    names = ("gm", "csf", "lesion", "scalp", "intra", "dispersion", "extra_diffusivity")
    values = {name: zeros for name in names} | parts | {"radial": directions, "gain": ones}
    return Microstructure(index=torch.arange(n), **(values | changes))


@pytest.fixture(scope="module")
def contrast() -> Contrast:
    return Contrast.draw(0)


@pytest.fixture(scope="module")
def head():
    pytest.importorskip("nilearn", reason="the MNI152 template stands in nilearn's wheel")
    return make_subject(5, anatomy="mni152", shape=SHAPE, affine=centred(np.eye(3) * 5), scheme=table(64))


def test_harmonics_obey_the_addition_theorem():
    u, g = (
        torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(s).normal(size=(50, 3))), dim=1)
        for s in (0, 1)
    )
    degree = 16
    products = even_harmonics(u, degree) * even_harmonics(g, degree)
    start = 0
    for order in range(0, degree + 1, 2):
        found = products[:, start : start + 2 * order + 1].sum(dim=1)
        expected = eval_legendre(order, (u * g).sum(dim=1).numpy())
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)
        start += 2 * order + 1


@pytest.mark.parametrize("dispersion", [0.0, 0.02, 0.3])
def test_signal_by_harmonics_is_the_signal_of_the_sticks(contrast, dispersion):
    rng = np.random.default_rng(4)
    n = 40
    shares = torch.from_numpy(rng.dirichlet(np.ones(6), n))
    directions = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, 3, 3))), dim=2)
    micro = micro_of(
        n,
        fibre_volumes=shares[:, :3],
        fibre_directions=directions,
        gm=shares[:, 3],
        csf=shares[:, 4],
        lesion=shares[:, 5],
        intra=torch.full((n,), 0.55).double(),
        dispersion=torch.full((n,), dispersion).double(),
        extra_diffusivity=torch.from_numpy(rng.uniform(-0.1, 0.1, n)),
    )
    shells = shell_table(np.random.default_rng(5), {700.0: 12, 1500.0: 12, 3000.0: 12}, n_b0=2)
    expected = simulate(micro, contrast, shells)
    torch.testing.assert_close(
        simulate_by_harmonics(micro, contrast, shells).T, expected, rtol=1e-4, atol=1e-5
    )


def test_dipy_recovers_the_anisotropy_of_a_single_zeppelin(contrast):
    signal = simulate_by_harmonics(micro_of(60), contrast, table(64))
    fit = TensorModel(dipy_table(table(64), torch.eye(4).double())).fit(signal.T.numpy())
    along, across = contrast.d_parallel, contrast.d_perpendicular
    analytic = (along - across) / np.sqrt(along**2 + 2 * across**2)
    np.testing.assert_allclose(fit.fa, analytic, atol=MAX_FA_ERROR)
    np.testing.assert_allclose(1000 * fit.md, (along + 2 * across) / 3, rtol=0.01)


def test_anisotropy_from_64_directions_is_that_from_1000():
    pytest.importorskip("nilearn", reason="the MNI152 template stands in nilearn's wheel")
    slab = {"anatomy": "mni152", "shape": (34, 42, 6), "affine": centred(np.eye(3) * 5, (34, 42, 6))}
    scans = [make_subject(5, scheme=scheme, **slab) for scheme in (table(64), dense_table())]
    where = scans[0].dseg == 1
    fa = [
        TensorModel(dipy_table(s.table, s.affine)).fit(s.clean[:, where].T.double().numpy()).fa for s in scans
    ]
    assert int(where.sum()) > 700
    np.testing.assert_allclose(fa[0], fa[1], atol=MAX_FA_ERROR)


def dense_table() -> GradientTable:
    """One b0 and 1000 directions on a spiral over the hemisphere."""
    height = (np.arange(1000) + 0.5) / 1000
    angle, radius = np.pi * (1 + 5**0.5) * np.arange(1000), np.sqrt(1 - height**2)
    spiral = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)
    bvals = np.r_[0.0, np.full(1000, 1000.0)]
    return GradientTable(torch.from_numpy(bvals), torch.from_numpy(np.r_[np.zeros((1, 3)), spiral]))


def single_fibre(subject) -> torch.Tensor:
    """Voxels that one population all but fills."""
    return (subject.npeaks == 1) & (subject.peaks_world[:3].norm(dim=0) >= SINGLE)


def tensor_degrees(subject, flip: tuple[int, int, int] = (1, 1, 1)) -> np.ndarray:
    """Angles between DIPY's first eigenvector of the noise-free signal, in world, and the only peak."""
    where = single_fibre(subject)
    voxel = subject.table.in_voxel_frame(subject.affine).numpy() * flip
    scheme = gradient_table(subject.table.bvals.numpy(), bvecs=voxel, b0_threshold=50)
    fit = TensorModel(scheme).fit(subject.clean[:, where].T.double().numpy())
    return degrees(fit.evecs[:, :, 0], subject, where)


def degrees(voxel_directions: np.ndarray, subject, where: torch.Tensor) -> np.ndarray:
    world = voxel_directions @ grid_rotation(subject.affine).numpy().T
    truth = torch.nn.functional.normalize(subject.peaks_world[:3, where].T.double(), dim=1).numpy()
    return np.rad2deg(np.arccos(np.abs((world * truth).sum(axis=1)).clip(max=1)))


@pytest.mark.parametrize("linear", GRIDS)
def test_dipy_tensor_finds_single_fibres(head, linear):
    subject = make_subject(5, anatomy="mni152", shape=SHAPE, affine=centred(linear), scheme=table(64))
    angles = tensor_degrees(subject)
    assert len(angles) >= 20
    assert float(np.quantile(angles, 0.95)) < MAX_DEGREES


@pytest.mark.parametrize("linear", GRIDS[1:2])
def test_dipy_tensor_misses_single_fibres_when_x_is_flipped(head, linear):
    subject = make_subject(5, anatomy="mni152", shape=SHAPE, affine=centred(linear), scheme=table(64))
    assert float(np.median(tensor_degrees(subject, flip=(-1, 1, 1)))) > 10.0


def test_dipy_deconvolution_finds_single_fibres(head):
    sharp = make_subject(5, anatomy="mni152", shape=SHAPE, affine=head.affine, scheme=table(64, b=3000.0))
    where = single_fibre(sharp)
    signal = sharp.clean[:, where].T.double().numpy()
    scheme = dipy_table(sharp.table, sharp.affine)
    response = (np.array([1.7, 0.3, 0.3]) * 1e-3, float(signal[:, 0].mean()))
    model = ConstrainedSphericalDeconvModel(scheme, response, sh_order_max=8)
    sphere = get_sphere(name="repulsion724").subdivide(n=2)  # vertices 2 degrees apart
    largest = sphere.vertices[model.fit(signal).odf(sphere).argmax(axis=1)]
    angles = degrees(largest, sharp, where)
    assert len(angles) >= 20
    assert float(np.quantile(angles, 0.95)) < MAX_DEGREES


def test_lesions_diffuse_faster_and_are_brighter(head):
    lesion = head.maps["probseg"][0] * (head.lesion == 1) > 0.9
    white = (head.maps["probseg"][0] > 0.95) & (head.lesion == 0)
    b0 = head.clean[head.table.b0_mask].mean(0)
    attenuation = -torch.log(head.clean[~head.table.b0_mask].mean(0) / b0.clamp(min=1e-3))
    assert int(lesion.sum()) >= 3
    assert float(attenuation[lesion].mean()) > 1.1 * float(attenuation[white].mean())
    assert float(b0[lesion].mean()) > 1.05 * float(b0[white].mean())


def test_contrast_values_are_replaceable(contrast):
    faster = dataclasses.replace(contrast, d_csf=3.2)
    micro = micro_of(2, csf=torch.ones(2).double(), fibre_volumes=torch.zeros(2, 3).double())
    signal = simulate_by_harmonics(micro, faster, table(6))
    ratio = signal[1:].mean() / signal[0].mean()
    torch.testing.assert_close(ratio, torch.tensor(np.exp(-3.2)), rtol=1e-4, atol=0)
