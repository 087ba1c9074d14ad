"""Moments of magnitude noise against theory and against other packages."""

import math

import numpy as np
import pytest
import torch
from scipy import special

from dmri_monai.artifacts import g_factor_sigma, noncentral_chi, rician

SHAPE = (4, 40, 40, 40)
N = math.prod(SHAPE)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chi_mean(signal, sigma, coils):
    """Mean of the non-central chi distribution with 2 `coils` degrees of freedom (Rician for one coil)."""
    factor = math.sqrt(2) * special.gamma(coils + 0.5) / special.gamma(coils)
    return sigma * factor * special.hyp1f1(-0.5, coils, -(signal**2) / (2 * sigma**2))


def check_moments(noisy, signal, sigma, coils):
    mean = chi_mean(signal, sigma, coils)
    variance = signal**2 + 2 * coils * sigma**2 - mean**2
    values = noisy.double()
    assert abs(float(values.mean()) - mean) < 5 * math.sqrt(variance / N)
    assert abs(float(values.var()) / variance - 1) < 5 * math.sqrt(3 / N)


@pytest.mark.parametrize("snr", [2.0, 5.0, 20.0], ids=lambda v: f"snr-{v:g}")
def test_rician_mean_and_variance_follow_theory(snr):
    noisy = rician(torch.full(SHAPE, 100.0), sigma=100.0 / snr, generator=seeded())
    check_moments(noisy, 100.0, 100.0 / snr, coils=1)


@pytest.mark.parametrize("coils", [1, 4, 8, 9, 10, 32], ids=lambda v: f"coils-{v}")
@pytest.mark.parametrize("signal", [0.0, 30.0], ids=["background", "tissue"])
def test_noncentral_chi_mean_and_variance_follow_theory(coils, signal):
    noisy = noncentral_chi(torch.full(SHAPE, signal), sigma=10.0, coils=coils, generator=seeded(coils))
    check_moments(noisy, signal, 10.0, coils)


@pytest.mark.parametrize("coils", [2, 4, 9, 12], ids=lambda v: f"coils-{v}")
def test_noncentral_chi_has_the_distribution_of_summed_coil_images(coils):
    image, sigma = torch.full((60, 60, 60), 25.0), 10.0
    noisy = noncentral_chi(image, sigma=sigma, coils=coils, generator=seeded())
    noise = torch.randn(2, coils, *image.shape, generator=seeded(1)) * sigma
    each = image / math.sqrt(coils)
    summed = ((each + noise[0]) ** 2 + noise[1] ** 2).sum(0).sqrt()
    levels = torch.linspace(0.01, 0.99, 25)
    torch.testing.assert_close(
        noisy.flatten().quantile(levels), summed.flatten().quantile(levels), rtol=0.01, atol=0
    )


def test_background_of_rician_noise_is_rayleigh():
    noisy = rician(torch.zeros(SHAPE), sigma=7.0, generator=seeded())
    assert float(noisy.mean()) == pytest.approx(7.0 * math.sqrt(math.pi / 2), rel=0.005)


def test_rician_moments_agree_with_dipy():
    voxel = pytest.importorskip("dipy.sims.voxel")
    rng = np.random.default_rng(0)
    theirs = voxel.add_noise(np.full(N, 100.0), snr=5.0, S0=100.0, noise_type="rician", rng=rng)
    ours = rician(torch.full(SHAPE, 100.0), sigma=20.0, generator=seeded()).double()
    assert float(ours.mean()) == pytest.approx(theirs.mean(), rel=2e-3)
    assert float(ours.std()) == pytest.approx(theirs.std(), rel=1e-2)


def test_rician_moments_agree_with_monai():
    transforms = pytest.importorskip("monai.transforms")
    theirs = transforms.RandRicianNoise(prob=1.0, mean=0.0, std=20.0, sample_std=False)
    theirs.set_random_state(0)
    reference = torch.as_tensor(theirs(torch.full(SHAPE, 100.0))).double()
    ours = rician(torch.full(SHAPE, 100.0), sigma=20.0, generator=seeded()).double()
    assert float(ours.mean()) == pytest.approx(float(reference.mean()), rel=2e-3)
    assert float(ours.std()) == pytest.approx(float(reference.std()), rel=1e-2)


def test_g_factor_map_scales_noise_voxel_by_voxel():
    g = torch.ones(30, 30, 30)
    g[15:] = 2.0
    sigma = g_factor_sigma(g, sigma=5.0, acceleration=4.0)
    noisy = noncentral_chi(torch.full((40, 30, 30, 30), 1000.0), sigma=sigma, coils=4, generator=seeded())
    assert float(noisy[:, :15].std()) == pytest.approx(10.0, rel=0.01)
    assert float(noisy[:, 15:].std()) == pytest.approx(20.0, rel=0.01)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=lambda d: str(d)[6:]
)
def test_noise_keeps_the_float_type(dtype):
    noisy = rician(torch.full((2, 9, 8, 7), 10.0, dtype=dtype), sigma=1.0, generator=seeded())
    assert noisy.dtype == dtype


def test_zero_sigma_is_the_identity():
    image = torch.rand(2, 5, 6, 7)
    torch.testing.assert_close(rician(image, sigma=0.0), image, rtol=0, atol=0)
    torch.testing.assert_close(noncentral_chi(image, sigma=0.0, coils=8), image, rtol=0, atol=0)


def test_zero_sigma_map_is_the_identity_for_many_coils():
    image = torch.rand(2, 5, 6, 7)
    torch.testing.assert_close(noncentral_chi(image, sigma=torch.zeros(5, 6, 7), coils=8), image)


def test_same_generator_seed_gives_the_same_noise():
    image = torch.rand(3, 5, 6, 7)
    torch.testing.assert_close(
        rician(image, sigma=0.1, generator=seeded(3)),
        rician(image, sigma=0.1, generator=seeded(3)),
        rtol=0,
        atol=0,
    )


def test_rician_is_differentiable_in_signal_and_sigma():
    image = (torch.rand(2, 3, 3, 3, dtype=torch.float64) + 0.5).requires_grad_()
    sigma = torch.full((3, 3, 3), 0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda i, s: rician(i, sigma=s, generator=seeded(1)), (image, sigma))


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf], ids=["negative", "nan", "infinite"])
def test_bad_sigma_is_named(bad):
    with pytest.raises(ValueError, match="sigma is"):
        rician(torch.ones(2, 3, 3, 3), sigma=bad)


@pytest.mark.parametrize("bad", [0, 1.5, True], ids=str)
def test_bad_number_of_coils_is_named(bad):
    with pytest.raises(ValueError, match="coils is"):
        noncentral_chi(torch.ones(2, 3, 3, 3), sigma=1.0, coils=bad)


def test_g_factor_below_one_is_refused():
    with pytest.raises(ValueError, match="g_factor is 0.5"):
        g_factor_sigma(torch.full((2, 2, 2), 0.5), sigma=1.0)
