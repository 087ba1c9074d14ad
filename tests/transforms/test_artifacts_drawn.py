"""What each random artifact drew is what it does: sizes, places and times in the units of its ranges."""

import math

import pytest
import torch

from dmri_monai.artifacts import ghost, t2star_blur
from dmri_monai.artifacts.engine import (
    BiasField,
    Drift,
    FatShift,
    Ghost,
    Noise,
    Preset,
    SliceMotion,
    T2StarBlur,
    corrupt,
)
from tests.transforms.test_artifacts import directions
from tests.transforms.test_artifacts_effects import GRIDS, moved_by, signal, table, tensors

SHAPE = (16, 20, 12)
AFFINE = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
SCANNER = {"phase_encoding_world": [0.0, 1.0, 0.0], "total_readout_time_s": 0.05}
BVALS = torch.tensor([0.0] + [1000.0] * 10)
BVECS = torch.cat([torch.zeros(1, 3, dtype=torch.float64), directions(10)])


def done(image, artifact, seed=0, **meta):
    return corrupt(image, BVALS, BVECS, affine=AFFINE, preset=artifact, seed=seed, meta=SCANNER | meta)


def uniform(height=1000.0):
    return torch.full((11, *SHAPE), height)


def ball():
    axes = torch.meshgrid(*[torch.arange(n) - (n - 1) / 2 for n in SHAPE], indexing="ij")
    return (1000.0 * (axes[0] ** 2 + axes[1] ** 2 + axes[2] ** 2 < 9)).expand(11, *SHAPE).contiguous()


@pytest.mark.parametrize("name", list(GRIDS))
def test_recorded_translation_is_in_the_world(name):
    shift = torch.tensor([3.0, -2.0, 4.0], dtype=torch.float64)
    pose = {"rotation_deg": [[0.0, 0.0, 0.0]], "translation_mm": [shift.tolist()]}
    _, moved, _, positions = moved_by(GRIDS[name], "motion", {"starts": [1], **pose})
    inside = (slice(1, None), *[slice(4, -4)] * 3)
    expected = signal(tensors(positions - shift), *table())[inside]
    torch.testing.assert_close(moved[inside], expected, rtol=1e-2, atol=0)
    wrong = signal(tensors(positions + shift), *table())[inside]
    assert float((wrong / expected - 1).abs().max()) > 0.1


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["anterior", "posterior"])
def test_fat_lies_at_frequency_times_readout_time_along_phase_encoding(sign):
    fat = (
        done(ball(), FatShift(strength=0.2, frequency_hz=100.0), phase_encoding_world=[0.0, sign, 0.0])[0]
        - ball()
    )
    centre = (fat.sum((0, 1, 3)) * torch.arange(20.0)).sum() / fat.sum()
    assert float(centre) == pytest.approx(9.5 + sign * 100 * 0.05, abs=0.01)
    assert float(fat.max()) == pytest.approx(200.0, rel=1e-4)


def test_decay_follows_the_readout_time_of_the_scan():
    image = ball() + 1
    blurred, _ = done(image, T2StarBlur(t2star_s=0.02))
    ratio = (torch.fft.fft(blurred, dim=2) / torch.fft.fft(image, dim=2))[:, 8, 1:4, 6].abs()
    expected = torch.exp(-torch.arange(1.0, 4.0) * 0.05 / 20 / 0.02)
    torch.testing.assert_close(ratio, expected.expand(11, 3), rtol=1e-3, atol=0)


def test_ghost_has_the_drawn_phase():
    image = torch.zeros(11, *SHAPE)
    image[:, 3, 4, 5] = 100.0
    ghosted, _ = done(image, Ghost(phase_deg=10.0))
    assert float(ghosted[2, 3, 14, 5]) == pytest.approx(100 * math.sin(math.radians(10)), rel=1e-4)


def test_filters_of_one_axis_act_one_after_the_other():
    image = ball() + 1
    both, _ = done(image, Preset("both", (T2StarBlur(t2star_s=0.02), Ghost(phase_deg=12.0))))
    blurred = t2star_blur(image, axis=1, total_readout_time_s=0.05, t2star_s=0.02)
    torch.testing.assert_close(both, ghost(blurred, axis=1, phase_deg=12.0), rtol=1e-4, atol=1e-2)


def test_noise_has_the_drawn_snr_of_the_unweighted_signal():
    image = 0.3 * uniform()
    image[0, :8] = 1000.0  # b0: signal in one half, nothing in the other
    image[0, 8:] = 0.0
    noisy, record = done(image, Noise(snr=20.0))
    assert record["applied"][0]["drawn"]["sigma"] == pytest.approx(50.0)
    assert float((noisy - image)[1:].std()) == pytest.approx(50.0, rel=0.03)


def test_noise_of_a_uniform_scan_has_the_drawn_snr():
    assert float(done(uniform(), Noise(snr=20.0))[0].std()) == pytest.approx(50.0, rel=0.02)


def test_g_factor_raises_the_noise_in_the_middle():
    noisy, _ = done(uniform(), Noise(snr=50.0, g_factor=3.0))
    middle, corners = noisy[:, 7:9, 9:11, 5:7].std(), noisy[:, ::15, ::19, ::11].std()
    assert float(middle) == pytest.approx(60.0, rel=0.25)
    assert float(corners) == pytest.approx(20.0, rel=0.25)


def test_drift_loses_the_drawn_fraction_by_its_order():
    orders = set()
    for seed in range(8):
        drifted, record = done(uniform(), Drift(fraction=0.06), seed)
        order = record["applied"][0]["drawn"]["order"]
        ratio = drifted[:, 0, 0, 0] / 1000
        torch.testing.assert_close(ratio, 1 - 0.06 * torch.linspace(0, 1, 11) ** order)
        orders.add(order)
    assert orders == {1, 2}


def test_bias_reaches_its_strength():
    gain = (done(uniform(), BiasField(strength=0.4))[0] / 1000).log()
    assert float(gain.abs().max()) == pytest.approx(0.4, rel=1e-4)


@pytest.mark.parametrize("up", [1.0, -1.0], ids=["feet-first", "head-first"])
def test_slices_after_a_movement_are_the_late_ones_of_the_timing(up):
    timing = [0.1 * s for s in range(SHAPE[2])]  # in the order of the file, along `slice_world`
    _, record = done(uniform(), SliceMotion(share=1.0), slice_timing_s=timing, slice_world=[0.0, 0.0, up])
    drawn = record["applied"][0]["drawn"]
    assert drawn["volumes"] == list(range(1, 11))
    for late in drawn["slices"]:
        assert 2 <= len(late) <= 10
        assert late == (list(range(12))[-len(late) :] if up > 0 else list(range(len(late))))
