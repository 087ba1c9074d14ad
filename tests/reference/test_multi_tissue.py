"""Multi-tissue deconvolution: what it finds beside that of one shell, and that its solver is at the optimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import lpmv

from dmri_monai.gradients import GradientTable
from dmri_monai.reference import fibre_labels
from dmri_monai.reference.multi_tissue import ConeFit, tissue_voxels
from tests.reference.test_fibres import FIRST, SECOND
from tests.transforms.fields import axial_degrees, directions

SHAPE = (10, 6, 4)
FIBRE, CROSSING, PARTIAL, GREY, FLUID = (slice(0, 3), slice(3, 5), slice(5, 7), slice(7, 9), slice(9, 10))
MASK = torch.ones(SHAPE, dtype=torch.bool)


def table(low: int = 30, high: int = 60, jitter: float = 0.0) -> GradientTable:
    bvals = np.r_[np.zeros(4), np.full(low, 1000.0), np.full(high, 3000.0)]
    bvals[4:] += jitter * np.sin(np.arange(low + high))
    bvecs = np.r_[np.zeros((4, 3)), directions(low, 1), directions(high, 2)]
    return GradientTable(torch.tensor(bvals), torch.tensor(bvecs))


def scan(gradients: GradientTable, snr: float = 20.0) -> torch.Tensor:
    b, g = gradients.bvals.numpy(), gradients.bvecs.numpy()
    one, two = (np.exp(-b * (0.3e-3 + 1.4e-3 * (g @ v) ** 2)) for v in (FIRST, SECOND))
    grey, fluid = np.exp(-b * 0.8e-3), np.exp(-b * 3e-3)
    signal = np.zeros((len(b), *SHAPE))
    parts = (one, (one + two) / 2, (one + grey) / 2, grey, fluid)
    for where, part in zip((FIBRE, CROSSING, PARTIAL, GREY, FLUID), parts, strict=True):
        signal[:, where] = part[:, None, None, None]
    noise = np.random.default_rng(0).normal(scale=1 / snr, size=(2, *signal.shape))
    return torch.tensor(100 * np.hypot(signal + noise[0], noise[1]), dtype=torch.float32)


def right(npeaks: torch.Tensor, where: slice, count: int) -> float:
    return float((npeaks[where] == count).float().mean())


@pytest.fixture(scope="module")
def labels():
    return fibre_labels(scan(table()), table(), mask=MASK, method="msmt")


def test_each_tissue_has_its_number_of_fibres(labels):
    for where, count in ((FIBRE, 1), (CROSSING, 2), (PARTIAL, 1), (GREY, 0), (FLUID, 0)):
        assert right(labels.npeaks, where, count) > 0.95, where


def test_peaks_lie_along_the_fibres(labels):
    one = labels.peaks_world[:3, FIBRE].movedim(0, -1).numpy()
    assert np.nanmedian(axial_degrees(one, FIRST)) < 4
    both = labels.peaks_world[:6, CROSSING].unflatten(0, (2, 3)).movedim((0, 1), (-2, -1)).numpy()
    for fibre in (FIRST, SECOND):
        assert np.nanmedian(np.nanmin(axial_degrees(both, fibre), axis=-1)) < 6


def test_one_shell_alone_finds_false_fibres_in_grey_matter(labels):
    """The control: why there is a second method."""
    single = fibre_labels(scan(table()), table(), mask=MASK, method="csd")
    assert right(single.npeaks, GREY, 0) < 0.9 < right(labels.npeaks, GREY, 0)


def test_b_values_that_scatter_within_a_shell_change_little(labels):
    scattered = table(jitter=15.0)
    out = fibre_labels(scan(scattered), scattered, mask=MASK, method="msmt")
    assert float((out.npeaks == labels.npeaks).float().mean()) > 0.95


def test_one_shell_is_an_error():
    single = table().select(table().bvals < 2000)
    with pytest.raises(ValueError, match=r"1 shells of at least 6 directions: .* needs two"):
        fibre_labels(scan(single), single, mask=MASK, method="msmt")


def test_a_scan_without_fluid_is_an_error():
    inside = MASK.clone()
    inside[FLUID] = False
    with pytest.raises(ValueError, match="no voxel looks like fluid by FA and MD"):
        fibre_labels(scan(table()), table(), mask=inside, method="msmt")


def test_another_method_is_an_error():
    with pytest.raises(ValueError, match="method must be 'csd' or 'msmt', got 'dti'"):
        fibre_labels(scan(table()), table(), mask=MASK, method="dti")  # type: ignore[arg-type]


def test_tissues_are_the_voxels_of_lowest_fa_and_of_highest_diffusivity():
    fa = np.array([0.05, 0.10, 0.20, 0.60, 0.10, 0.10])
    md = np.array([0.8, 0.9, 0.8, 0.8, 2.5, 3.0]) * 1e-3
    grey, fluid = tissue_voxels(fa, md, np.ones(6, bool), count=2)
    assert grey.tolist() == [True, True, False, False, False, False]
    assert fluid.tolist() == [False, False, False, False, True, True]
    assert tissue_voxels(fa, md, np.ones(6, bool), count=1)[1].tolist() == [False] * 5 + [True]


def problem(n: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Design (40, 9), cone (30, 9) of functions that must be positive, and signals (n, 40) of some that are not."""
    rng = np.random.default_rng(0)
    cone = np.stack([lpmv(0, order, np.linspace(-1, 1, 30)) for order in range(9)], axis=1)
    return rng.normal(size=(40, 9)) * 10.0 ** -np.linspace(0, 2, 9), cone, rng.normal(size=(n, 40))


def test_the_solver_meets_the_conditions_of_an_optimum():
    """Karush, Kuhn and Tucker: feasible, and the gradient a non-negative combination of the active constraints."""
    from scipy.optimize import nnls

    design, cone, signals = problem()
    fit, active = ConeFit(design, cone), 0
    for signal in signals:
        c = fit(signal)
        value, gradient = cone @ c, design.T @ (design @ c - signal)
        scale = np.abs(cone @ np.linalg.lstsq(design, signal, rcond=None)[0]).max()
        assert value.min() >= -1e-9 * scale
        tight = value <= 1e-8 * scale
        active += int(tight.sum())
        _, residual = nnls(cone[tight].T, gradient) if tight.any() else (None, np.linalg.norm(gradient))
        assert residual <= 1e-6 * np.linalg.norm(design.T @ signal)
    assert active > len(signals)  # the constraints are at work


def test_without_active_constraints_it_is_least_squares():
    design, cone, _ = problem()
    c = np.linalg.lstsq(cone, np.ones(30), rcond=None)[0]
    np.testing.assert_allclose(ConeFit(design, cone)(design @ c), c, atol=1e-9)


def test_a_silent_voxel_has_no_fibres():
    design, cone, _ = problem()
    np.testing.assert_allclose(ConeFit(design, cone)(np.zeros(40)), np.zeros(9))


def test_a_design_that_determines_nothing_is_an_error():
    design, cone, _ = problem()
    design[:, 3] = design[:, 4]
    with pytest.raises(ValueError, match="do not determine"):
        ConeFit(design, cone)


def test_it_agrees_with_the_solver_of_dipy():
    pytest.importorskip("cvxpy", reason="DIPY's own solver needs cvxpy")
    from dipy.reconst.mcsd import QpFitter

    design, cone, signals = problem()
    ours, theirs = ConeFit(design, cone), QpFitter(design, cone)
    for signal in signals:
        a, b = ours(signal), theirs(signal)
        np.testing.assert_allclose(
            np.linalg.norm(design @ a - signal), np.linalg.norm(design @ b - signal), rtol=1e-4
        )
        np.testing.assert_allclose(design @ a, design @ b, atol=2e-2)
