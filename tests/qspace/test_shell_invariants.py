"""Invariants of shells: known values of a tensor, no direction left, the shell that is looked at."""

import math

import pytest
import torch

from dmri_monai.qspace.shell_invariants import shell_invariants
from dmri_monai.qspace.shell_set import shell_channels, shell_set
from dmri_monai.testing import cube_rotations

SLOTS = 3


def directions(n=30, seed=0):
    found = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return found / found.norm(dim=1, keepdim=True)


def scan(b=(1000.0,), fibre=(0.0, 0.6, 0.8), parallel=1.7, perpendicular=0.3):
    """bvals (N,), bvecs (N, 3) and signal (N, 4, 1, 1): a fibre, free water, grey matter, air."""
    g = directions()
    bvals = torch.cat([torch.zeros(2), *(torch.full((len(g),), value) for value in b)]).double()
    bvecs = torch.cat([torch.zeros(2, 3).double(), *(g for _ in b)])
    cosine = bvecs @ torch.tensor(fibre).double()
    diffusivity = torch.stack([
        perpendicular + (parallel - perpendicular) * cosine**2,
        torch.full_like(cosine, 3.0),
        torch.full_like(cosine, 0.8),
        torch.zeros_like(cosine),
    ], 1)  # fmt: skip
    signal = torch.exp(-bvals[:, None] / 1000 * diffusivity) * torch.tensor([100.0, 200.0, 100.0, 0.0])
    return bvals, bvecs, signal[:, :, None, None].float()


def invariants(bvals, bvecs, signal, slots=SLOTS, l_max=4):
    channels = shell_channels(signal, bvals, shell_set(bvals, bvecs, slots=slots, l_max=l_max))
    return shell_invariants(channels[None], slots)[0, :, :, 0, 0]


def test_values_are_those_of_the_voxels():
    b0, diffusivity, anisotropy, b, log_n = invariants(*scan())
    torch.testing.assert_close(b0, torch.tensor([1.0, 2.0, 1.0, 0.0]))
    torch.testing.assert_close(diffusivity[1:3], torch.tensor([3.0, 0.8]), rtol=0.02, atol=0)
    assert 0.5 < diffusivity[0] < 0.9
    assert anisotropy[0] > 0.5 > 0.05 > anisotropy[1:].max()
    assert diffusivity[3] == anisotropy[3] == 0
    torch.testing.assert_close(b, torch.ones(4))
    torch.testing.assert_close(log_n, torch.full((4,), math.log(30) / 4))


@pytest.mark.parametrize("number", [3, 17, 40])
def test_turning_fibres_and_gradients_together_changes_nothing(number):
    turn = cube_rotations(reflections=True)[number].double()
    bvals, bvecs, signal = scan()
    torch.testing.assert_close(
        invariants(bvals, bvecs @ turn.T, signal), invariants(bvals, bvecs, signal), rtol=1e-4, atol=1e-5
    )
    shuffled = bvecs[
        torch.cat([torch.arange(2), 2 + torch.randperm(30, generator=torch.Generator().manual_seed(1))])
    ]
    assert (invariants(bvals, shuffled, signal) - invariants(bvals, bvecs, signal))[2].abs().max() > 0.1


def test_looks_at_the_shell_nearest_to_1000():
    one, three = invariants(*scan((1000.0,))), invariants(*scan((500.0, 1000.0, 2500.0)))
    torch.testing.assert_close(three, one, rtol=1e-4, atol=1e-5)
    assert invariants(*scan((700.0, 3000.0)))[3].unique().tolist() == pytest.approx([0.7])
    assert invariants(*scan((3000.0,)))[3].unique().tolist() == pytest.approx([3.0])


def test_number_of_slots_and_degree_change_nothing():
    torch.testing.assert_close(
        invariants(*scan(), slots=1, l_max=2)[[0, 1, 3, 4]],
        invariants(*scan())[[0, 1, 3, 4]],
        rtol=1e-2,
        atol=1e-3,
    )
