"""Effects of k-space sampling: where ghosts, rings and wraps appear, and with how much energy."""

import math

import pytest
import torch

from dmri_monai.artifacts import (
    aliasing,
    ghost,
    gibbs,
    line_ghost,
    partial_fourier,
    spike,
    t2star_blur,
    zipper,
)
from dmri_monai.artifacts.lines import filter_lines, ghost_gain, partial_fourier_gain, truncation_gain


def point(shape=(1, 8, 32, 4), at=(0, 3, 10, 2)):
    image = torch.zeros(shape, dtype=torch.float64)
    image[at] = 1.0
    return image


def textured(shape=(3, 15, 15, 15)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1.0


def test_nyquist_ghost_of_a_point_is_half_a_field_of_view_away():
    line = ghost(point(), axis=1, phase_deg=10.0)[0, 3, :, 2]
    expected = torch.zeros(32, dtype=torch.float64)
    expected[10], expected[26] = math.cos(math.radians(10)), math.sin(math.radians(10))
    torch.testing.assert_close(line, expected)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["x", "y", "z"])
def test_nyquist_ghost_stays_on_its_line_along_every_axis(axis):
    image = point((1, 12, 12, 12), (0, 3, 4, 5))
    ghosted = ghost(image, axis=axis, phase_deg=20.0)
    place = [0, 3, 4, 5]
    place[axis + 1] = (place[axis + 1] + 6) % 12
    assert float(ghosted[tuple(place)]) == pytest.approx(math.sin(math.radians(20)))
    assert int((ghosted > 1e-9).sum()) == 2


@pytest.mark.parametrize("size", [32, 31], ids=["even", "odd"])
def test_nyquist_ghost_keeps_the_energy(size):
    image = textured((2, 4, size, 3))
    torch.testing.assert_close(
        ghost(image, axis=1, phase_deg=15.0).square().sum(), image.square().sum(), rtol=1e-9, atol=0
    )


def test_line_ghost_of_a_point_appears_at_half_fov_for_period_two():
    line = line_ghost(point(), axis=1, period=2, strength=0.4)[0, 3, :, 2]
    assert float(line[10]) == pytest.approx(1 - 0.4 / 2)
    assert float(line[26]) == pytest.approx(0.4 / 2)


def test_line_ghost_of_period_four_has_three_equal_replicas():
    line = line_ghost(point(), axis=1, period=4, strength=0.4)[0, 3, :, 2]
    assert torch.nonzero(line > 1e-9).flatten().tolist() == [2, 10, 18, 26]
    torch.testing.assert_close(line[[2, 18, 26]], torch.full((3,), 0.1, dtype=torch.float64))


def test_gibbs_overshoots_an_edge_by_nine_percent():
    image = torch.zeros(1, 2048, 1, 1, dtype=torch.float64)
    image[:, 512:1536] = 1.0
    ringing = gibbs(image, axes=(0,), fraction=0.95)
    wilbraham = 0.08949  # overshoot of a band-limited edge of height 1
    assert float(ringing.max()) - 1 == pytest.approx(wilbraham, rel=0.02)


def test_gibbs_removes_exactly_the_outer_frequencies():
    image = textured((2, 16, 12, 3))
    spectrum = torch.fft.fftshift(torch.fft.fft(gibbs(image, axes=(0,), fraction=0.5), dim=1), dim=1)
    kept = spectrum.abs().amax((0, 2, 3)) > 1e-9
    assert torch.nonzero(kept).flatten().tolist() == list(range(4, 13))


def test_gibbs_does_not_touch_the_slice_axis():
    image = textured((1, 12, 12, 12))
    profile = image.mean((1, 2))
    torch.testing.assert_close(gibbs(image, axes=(0, 1), fraction=0.4).mean((1, 2)), profile)


def test_gibbs_agrees_with_monai_where_disc_and_square_meet():
    transforms = pytest.importorskip("monai.transforms")
    profile = torch.rand(15, generator=torch.Generator().manual_seed(1)) + 2.0
    image = profile.view(1, 15, 1, 1).expand(1, 15, 15, 15).contiguous()  # only frequencies along x
    theirs = torch.as_tensor(transforms.GibbsNoise(alpha=0.5)(image)).clone()
    fraction = 1 - (1 - 0.5) * math.sqrt(2)
    torch.testing.assert_close(gibbs(image, axes=(0, 1), fraction=fraction), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fraction", [7 / 8, 6 / 8, 5 / 8], ids=["7-8", "6-8", "5-8"])
def test_zero_filled_partial_fourier_has_the_dirichlet_point_spread(fraction):
    line = partial_fourier(point((1, 1, 64, 1), (0, 0, 20, 0)), axis=1, fraction=fraction)[0, 0, :, 0]
    kept, y = round(64 * fraction), torch.arange(64, dtype=torch.float64) - 20
    expected = torch.sin(math.pi * kept * y / 64) / (64 * torch.sin(math.pi * y / 64))
    expected[20] = kept / 64
    torch.testing.assert_close(line, expected.abs(), rtol=0, atol=1e-9)


def test_zero_filled_partial_fourier_keeps_its_share_of_a_points_energy():
    line = partial_fourier(point((1, 1, 64, 1), (0, 0, 20, 0)), axis=1, fraction=0.75)
    assert float(line.square().sum()) == pytest.approx(0.75)


def test_hermitian_filling_is_exact_without_phase():
    image = textured()
    flat = torch.zeros(15, 15, 15, dtype=torch.float64)
    for phase in (None, flat):
        filled = partial_fourier(image, axis=1, fraction=0.6, fill="hermitian", phase=phase)
        torch.testing.assert_close(filled, image)


@pytest.mark.parametrize("fill", ["zero", "hermitian"])
@pytest.mark.parametrize("size", [16, 15], ids=["even", "odd"])
def test_partial_fourier_with_phase_agrees_with_an_fft(fill, size):
    image = textured((2, 3, size, 4))
    phase = torch.rand(3, size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    gain = torch.fft.ifftshift(partial_fourier_gain(size, 0.7)).view(1, 1, -1, 1)
    spectrum = torch.fft.fft(torch.polar(image, phase.expand_as(image)), dim=2)
    if fill == "hermitian":
        opposite = spectrum[:, :, (-torch.arange(size)) % size]
        spectrum = torch.where(gain > 0, spectrum, opposite.conj())
    else:
        spectrum = spectrum * gain
    ours = partial_fourier(image, axis=1, fraction=0.7, fill=fill, phase=phase)
    torch.testing.assert_close(ours, torch.fft.ifft(spectrum, dim=2).abs())


def test_t2star_point_spread_is_a_lorentzian_of_the_expected_width():
    trt, t2star, n = 0.1, 0.002, 512
    line = t2star_blur(
        point((1, 1, n, 1), (0, 0, 256, 0)), axis=1, total_readout_time_s=trt, t2star_s=t2star
    )[0, 0, :, 0]
    width = trt / (math.pi * t2star)
    y = torch.arange(n, dtype=torch.float64) - 256
    expected = 1 / (1 + (2 * y / width) ** 2)
    centre = slice(226, 287)
    torch.testing.assert_close(line[centre] / line.max(), expected[centre], rtol=0.02, atol=0.005)


def test_t2star_blur_keeps_the_sum():
    image = textured()
    blurred = t2star_blur(image, axis=1, total_readout_time_s=0.07, t2star_s=0.05)
    torch.testing.assert_close(blurred.sum(2), image.sum(2))


def test_aliasing_wraps_by_the_width_of_the_smaller_field_of_view():
    wrapped = aliasing(point((1, 4, 32, 3), (0, 1, 2, 1)), axis=1, fraction=0.25)
    assert torch.nonzero(wrapped).tolist() == [[0, 1, 2 + 24, 1]]


def test_aliasing_keeps_the_sum_and_leaves_nothing_outside_the_window():
    image = textured((2, 5, 30, 4))
    wrapped = aliasing(image, axis=1, fraction=0.4)
    torch.testing.assert_close(wrapped.sum(2), image.sum(2))
    assert float(wrapped[:, :, :6].sum() + wrapped[:, :, 24:].sum()) == 0.0


def test_spike_of_small_amplitude_sits_at_its_frequency_with_its_energy():
    image = torch.full((1, 24, 20, 3), 50.0, dtype=torch.float64)
    spiked = spike(
        image,
        volumes=torch.tensor([0]),
        slices=torch.tensor([1]),
        frequency=torch.tensor([[5, 3]]),
        amplitude=1e-4,
    )
    spectrum = torch.fft.fft2((spiked - image)[0, :, :, 1]).abs()
    total = float(image[0, :, :, 1].sum())
    assert float(spectrum[5, 3]) == pytest.approx(0.5e-4 * total, rel=1e-3)
    assert float(spectrum[-5, -3]) == pytest.approx(0.5e-4 * total, rel=1e-3)
    spectrum[5, 3] = spectrum[-5, -3] = 0
    assert float(spectrum.max()) < 1e-3 * 0.5e-4 * total


def test_spike_is_an_added_k_space_sample():
    image = textured((2, 11, 10, 4))
    events = {"volumes": torch.tensor([1, 1]), "slices": torch.tensor([2, 2])}
    spiked = spike(
        image,
        **events,
        frequency=torch.tensor([[2, -3], [4, 1]]),
        amplitude=torch.tensor([0.3, 0.2]),
        phase=0.4,
    )
    spectrum = torch.fft.fft2(image[1, :, :, 2].to(torch.complex128))
    largest = spectrum.abs().max()
    wave = torch.polar(torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64))
    spectrum[2, -3] += 0.3 * largest * wave
    spectrum[4, 1] += 0.2 * largest * wave
    expected = image.clone()
    expected[1, :, :, 2] = torch.fft.ifft2(spectrum).abs()
    torch.testing.assert_close(spiked, expected)


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["x", "y", "z"])
def test_spike_hits_only_its_slice(axis):
    image = textured((2, 9, 8, 7))
    spiked = spike(
        image,
        volumes=torch.tensor([1]),
        slices=torch.tensor([4]),
        frequency=torch.tensor([[2, 1]]),
        amplitude=0.1,
        axis=axis,
    )
    hit = (spiked != image).movedim(axis + 1, 1).flatten(2).any(-1)
    assert torch.nonzero(hit).tolist() == [[1, 4]]


def test_spike_agrees_with_monai_in_one_slice():
    transforms = pytest.importorskip("monai.transforms")
    image = textured((1, 16, 16, 1)).float() + 100
    frequency, spectrum = (3, 2), torch.fft.fftn(image[0], dim=(0, 1))[..., 0]
    height = 10 * float(spectrum[frequency].abs())
    place = (8 + frequency[0], 8 + frequency[1], 0)
    theirs = transforms.KSpaceSpikeNoise(loc=place, k_intensity=math.log(height))(image.clone())
    added = height - float(spectrum[frequency].abs())  # MONAI sets the sample's size, its phase stays
    ours = spike(
        image,
        volumes=torch.tensor([0]),
        slices=torch.tensor([0]),
        frequency=torch.tensor([frequency]),
        amplitude=added / float(image.sum()),
        phase=float(spectrum[frequency].angle()),
    )
    difference = torch.as_tensor(theirs).clone() - image
    torch.testing.assert_close(ours - image, difference, rtol=0, atol=0.01 * float(difference.abs().max()))


def test_zipper_adds_noise_to_its_columns_only():
    image = torch.full((4, 20, 30, 30), 0.0)
    noisy = zipper(
        image, readout_axis=0, position=7, width=2, amplitude=3.0, generator=torch.Generator().manual_seed(0)
    )
    assert torch.nonzero((noisy != 0).flatten(2).any(-1).any(0)).flatten().tolist() == [7, 8]
    assert float(noisy[:, 7:9].mean()) == pytest.approx(3.0 * math.sqrt(math.pi / 2), rel=0.02)


def test_filters_on_two_axes_equal_one_after_the_other():
    image = textured((2, 8, 16, 4))
    gains = {0: truncation_gain(8, 0.3), 1: ghost_gain(16, 12.0) * truncation_gain(16, 0.3)}
    spectrum = torch.fft.fftn(image, dim=(1, 2))
    spectrum = spectrum * torch.fft.ifftshift(gains[0]).view(1, -1, 1, 1)
    spectrum = spectrum * torch.fft.ifftshift(gains[1]).view(1, 1, -1, 1)
    torch.testing.assert_close(filter_lines(image, gains), torch.fft.ifftn(spectrum, dim=(1, 2)).abs())


@pytest.mark.parametrize(
    "identity",
    [
        lambda x: ghost(x, axis=1, phase_deg=0.0),
        lambda x: line_ghost(x, axis=1, period=2, strength=0.0),
        lambda x: gibbs(x, axes=(0, 1), fraction=0.0),
        lambda x: t2star_blur(x, axis=1, total_readout_time_s=0.05, t2star_s=math.inf),
        lambda x: partial_fourier(x, axis=1, fraction=1.0),
        lambda x: aliasing(x, axis=1, fraction=0.0),
        lambda x: zipper(x, readout_axis=0, position=0, amplitude=0.0),
        lambda x: spike(
            x,
            volumes=torch.tensor([0]),
            slices=torch.tensor([0]),
            frequency=torch.tensor([[1, 1]]),
            amplitude=0.0,
        ),
    ],
    ids=["ghost", "line-ghost", "gibbs", "t2star", "partial-fourier", "aliasing", "zipper", "spike"],
)
def test_zero_strength_is_the_identity(identity):
    image = textured()
    torch.testing.assert_close(identity(image), image, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ghost(x, axis=3, phase_deg=5.0), "axis is 3, expected a spatial axis 0, 1 or 2"),
        (lambda x: ghost(x, axis=-1, phase_deg=5.0), "axis is -1"),
        (lambda x: line_ghost(x, axis=1, period=1, strength=0.1), "period is 1"),
        (lambda x: line_ghost(x, axis=1, period=2, strength=2.0), "strength is 2"),
        (lambda x: gibbs(x, axes=(0, 1), fraction=1.2), "fraction is 1.2"),
        (lambda x: partial_fourier(x, axis=1, fraction=0.5), "partial Fourier fraction is 0.5"),
        (lambda x: partial_fourier(x, axis=1, fraction=0.7, phase=torch.zeros(2, 2, 2)), "phase has shape"),
        (lambda x: t2star_blur(x, axis=1, total_readout_time_s=0.05, t2star_s=0.0), "t2star_s is 0"),
        (lambda x: aliasing(x, axis=1, fraction=1.0), "no voxel of 15 is left"),
        (lambda x: zipper(x, readout_axis=0, position=15, amplitude=1.0), "position 15 with width 1"),
    ],
    ids=lambda v: v.replace(" ", "-") if isinstance(v, str) else "",
)
def test_bad_parameters_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(textured())


def test_filters_are_differentiable_where_the_image_is_empty():
    image = torch.zeros(1, 4, 6, 2, requires_grad=True)
    ghost(image, axis=1, phase_deg=10.0).sum().backward()
    assert bool(image.grad.isfinite().all())


def test_k_space_chain_is_differentiable():
    image = (torch.rand(2, 4, 5, 3, dtype=torch.float64) + 0.5).requires_grad_()

    def chain(x):
        x = gibbs(ghost(x, axis=1, phase_deg=10.0), axes=(0,), fraction=0.4)
        return aliasing(x, axis=1, fraction=0.3).square()

    assert torch.autograd.gradcheck(chain, (image,))
