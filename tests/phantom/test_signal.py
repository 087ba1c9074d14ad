import numpy as np
import torch
from scipy.special import erf

from dmri_monai.phantom import make_subject, shell_table
from dmri_monai.phantom.anatomy import TISSUES, Anatomy
from dmri_monai.phantom.signal import dispersed_sticks, receive_bias


def one_stick(cosine: torch.Tensor, x: torch.Tensor, dispersion: float) -> torch.Tensor:
    """(P,) cosines, (N,) x -> (P, N) of one stick that fills the voxel."""
    n = len(cosine)
    cosines = cosine.double().view(n, 1, 1).expand(n, 1, len(x))
    volumes = torch.ones(n, 1, dtype=torch.float64)
    return dispersed_sticks(cosines, volumes, x.unsqueeze(0), torch.full((n,), dispersion).double())[0]


def test_stick_without_dispersion_is_the_exponential():
    cosine, x = torch.linspace(-1, 1, 41), torch.tensor([0.0, 1.0, 3.0, 6.0]).double()
    expected = torch.exp(-x * cosine.double().unsqueeze(1) ** 2)
    torch.testing.assert_close(one_stick(cosine, x, 0.0), expected, rtol=0, atol=1e-4)


def test_fully_dispersed_stick_is_the_powder_average():
    x = torch.tensor([0.5, 1.7, 5.0]).double()
    expected = np.sqrt(np.pi / (4 * x.numpy())) * erf(np.sqrt(x.numpy()))
    actual = one_stick(torch.zeros(1), x, 50.0)
    torch.testing.assert_close(actual.flatten(), torch.from_numpy(expected), rtol=1e-6, atol=0)


def test_small_dispersion_agrees_with_an_average_over_gaussian_tilts():
    variance, x = 0.02, torch.tensor([2.0]).double()
    tilt = torch.from_numpy(np.random.default_rng(0).normal(0, np.sqrt(variance), (400_000, 2)))
    sticks = torch.nn.functional.normalize(torch.cat([tilt, torch.ones(len(tilt), 1)], dim=1), dim=1)
    g = torch.tensor([np.sin(0.7), 0.0, np.cos(0.7)])
    expected = torch.exp(-x * (sticks @ g) ** 2).mean()
    actual = one_stick(g[2:], x, variance)
    torch.testing.assert_close(actual.squeeze(), expected, rtol=5e-3, atol=0)


def test_fibres_add_by_their_volumes():
    cosine, x = torch.tensor([[[0.2], [0.9]]]).double(), torch.tensor([[1.5]]).double()
    volumes, dispersion = torch.tensor([[0.3, 0.5]]).double(), torch.tensor([0.1]).double()
    both = dispersed_sticks(cosine, volumes, x, dispersion).squeeze()
    alone = [one_stick(torch.tensor([c]), x[0], 0.1).squeeze() for c in (0.2, 0.9)]
    torch.testing.assert_close(both, 0.3 * alone[0] + 0.5 * alone[1], rtol=1e-6, atol=0)


def test_signal_of_three_shells_falls_with_b():
    subject = make_subject(2, shape=(12, 14, 12), spacing_mm=(10.0, 10.0, 10.0), scheme="hcp-3shell")
    brain = subject.brain_mask == 1
    means = [float(subject.clean[s.indices][:, brain].mean()) for s in subject.table.shells()]
    assert len(means) == 3
    assert float(subject.clean[subject.table.b0_mask][:, brain].mean()) > means[0] > means[1] > means[2]


def test_water_attenuates_with_its_diffusivity():
    table = shell_table(np.random.default_rng(0), {1000.0: 6}, n_b0=1, jitter=0.0)
    subject = make_subject(3, scheme=table)
    csf = (subject.dseg == 3) & (subject.clean[0] > 1.6 * float(subject.parameters["SignalLevel"]))
    ratio = subject.clean[~table.b0_mask].mean(0)[csf] / subject.clean[table.b0_mask].mean(0)[csf]
    assert float(ratio.median()) == np.clip(float(ratio.median()), np.exp(-3.1), np.exp(-2.8))


def test_volume_fractions_sum_to_one_and_stay_in_range():
    points = torch.from_numpy(np.random.default_rng(0).uniform(-60, 60, (5000, 3))).float()
    fractions = Anatomy.draw(3).fractions(points, width_mm=1.0)
    assert fractions.shape == (len(TISSUES), 5000)
    torch.testing.assert_close(fractions.sum(dim=0), torch.ones(5000))
    assert float(fractions.min()) >= -1e-6


def test_receive_bias_is_smooth_and_positive():
    points = torch.from_numpy(np.random.default_rng(0).uniform(-60, 60, (2000, 3))).float()
    bias, moved = receive_bias(4, points), receive_bias(4, points + torch.tensor([2.5, 0.0, 0.0]))
    assert 0.3 < float(bias.min()) < float(bias.max()) < 3.0
    assert float((bias - moved).abs().max()) < 0.06
    assert float(bias.std()) > 0.02
