"""Simulated voxels: the signal against other formulas, the truth, the protocols, and reproducibility."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dmri_monai.phantom.protocols import draw_protocol, played_out
from dmri_monai.phantom.signal import dispersed_sticks
from dmri_monai.phantom.voxel_signals import (
    Voxels,
    draw_batch,
    draw_voxels,
    noisy,
    simulate_voxels,
    stick_harmonics,
)
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.peaks import harmonic_peaks

DIRECTIONS = spread_directions(40)


def voxels(count: int = 50, seed: int = 0, **changes: torch.Tensor) -> Voxels:
    return replace(draw_voxels(count, torch.Generator().manual_seed(seed)), **changes)


def only(tissue: int, count: int = 50) -> torch.Tensor:
    return torch.eye(4)[tissue].expand(count, 4)


def test_stick_harmonics_are_those_of_the_phantoms_sticks():
    x = torch.tensor([0.0, 1.0, 4.0])
    cosine = DIRECTIONS[:, 2].float().view(1, 1, -1)
    spread = torch.tensor([0.05])
    expected = dispersed_sticks(cosine, torch.ones(1, 1), x.unsqueeze(1).expand(3, 40), spread)[:, 0]
    degrees = torch.arange(0, 13, 2)
    legendre = torch.from_numpy(
        np.polynomial.legendre.legvander(cosine.flatten().numpy(), 12)[:, ::2]
    ).float()
    decay = torch.exp(-degrees * (degrees + 1) / 2 * spread)
    weights = stick_harmonics(x) * decay * (2 * degrees + 1) / (4 * math.pi)
    assert_close(weights @ legendre.T, expected, atol=1e-3, rtol=0)


def test_b0_is_the_sum_of_the_compartments_and_signal_falls_with_b():
    drawn = voxels()
    signal = simulate_voxels(drawn, torch.tensor([0.0, 1000.0, 3000.0]), torch.eye(3))
    assert_close(signal[:, 0], (drawn.fractions * drawn.s0).sum(1), atol=2e-3, rtol=1e-3)
    inside = drawn.fractions[:, 3] == 0
    assert (signal[inside, 0] > signal[inside, 1]).all()


def test_free_water_decays_as_one_exponential_the_same_in_all_directions():
    drawn = voxels(fractions=only(2))
    signal = simulate_voxels(drawn, torch.full((40,), 1200.0), DIRECTIONS)
    expected = drawn.s0[:, 2] * torch.exp(-1.2 * drawn.d_csf)
    assert_close(signal, expected.unsqueeze(1).expand(-1, 40), atol=1e-5, rtol=1e-4)


def test_a_single_fibre_attenuates_most_along_its_direction():
    shares = torch.eye(3)[0].expand(50, 3)
    drawn = voxels(fractions=only(0), shares=shares)
    signal = simulate_voxels(drawn, torch.full((400,), 2000.0), spread_directions(400))
    lowest = spread_directions(400).float()[signal.argmin(dim=1)]
    closeness = (lowest * drawn.directions[:, 0]).sum(1).abs()
    assert torch.rad2deg(closeness.clamp(max=1).acos()).max() < 12
    assert (lowest * drawn.directions[:, 1]).sum(1).abs().median() < 0.8  # the control: a fibre of no share


def test_mass_of_the_density_is_the_white_matter_fraction():
    drawn = voxels()
    assert_close(drawn.orientation_density()[:, 0] * math.sqrt(4 * math.pi), drawn.fractions[:, 0])


def test_peaks_of_the_density_are_the_fibres():
    spread = torch.zeros(50, 3)
    drawn = voxels(fractions=only(0), shares=torch.tensor([[0.6, 0.4, 0.0]]).expand(50, 3), spread=spread)
    apart = (drawn.directions[:, 0] * drawn.directions[:, 1]).sum(1).abs() < 0.5
    found = harmonic_peaks(drawn.orientation_density().T[:, apart], relative=0.3)
    assert (found.number == 2).float().mean() > 0.95
    closeness = (found.directions[:, 0].float() * drawn.directions[apart, 0]).sum(1).abs()
    assert torch.rad2deg(closeness.clamp(max=1).acos()).median() < 3


def test_fractions_sum_to_one_and_every_tissue_occurs_pure():
    fractions = voxels(2000).fractions
    assert_close(fractions.sum(1), torch.ones(2000))
    assert (fractions >= 0).all()
    assert ((fractions > 0.9).sum(0) > 20).all()


def test_noise_is_rician():
    silent = torch.zeros(200, 500)
    magnitude = noisy(silent, 0.1, torch.Generator().manual_seed(0))
    assert float(magnitude.mean()) == pytest.approx(0.1 * math.sqrt(math.pi / 2), rel=0.01)
    assert float(noisy(silent + 2, 0.1, torch.Generator().manual_seed(0)).std()) == pytest.approx(
        0.1, rel=0.02
    )


def test_batches_are_a_function_of_the_seed():
    first, again, other = (draw_batch(seed, 2, 16) for seed in (5, 5, 6))
    for name in ("channels", "density", "fractions"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.density, other.density)
    assert first.channels.shape == (125, 32)
    assert first.channels.isfinite().all()


def test_fibres_of_a_batch_are_counted_as_in_the_phantoms_heads():
    drawn = draw_batch(5, 2, 64)
    number, peaks = drawn.voxels.peaks()
    lengths = peaks.norm(dim=2)
    assert {0, 1, 2, 3} == set(number.tolist())
    assert torch.equal((lengths > 0).sum(1), number)
    assert (lengths[lengths > 0] >= 0.1).all()
    assert (lengths.diff(dim=1) <= 1e-6).all()
    several = number == 2
    found = harmonic_peaks(drawn.density[:, several], count=1, relative=0.2).directions[:, 0]
    near = torch.einsum(
        "vjc,vc->vj", peaks[several] / lengths[several].clamp(min=1e-6).unsqueeze(2), found.float()
    )
    assert near.abs().amax(1).median() > math.cos(math.radians(5))
    mistaken = peaks.flip(0)[several] / lengths.flip(0)[several].clamp(min=1e-6).unsqueeze(2)  # the control
    assert torch.einsum("vjc,vc->vj", mistaken, found.float()).abs().amax(1).median() < math.cos(
        math.radians(20)
    )


def test_protocols_are_varied_and_valid():
    tables = [draw_protocol(np.random.default_rng(seed)) for seed in range(60)]
    shells = [len(table.shells()) for table in tables]
    assert {1, 2, 3} <= set(shells)
    assert max(shells) > 6  # a grid, or directions at b-values of their own
    weighted = torch.cat([table.bvals[~table.b0_mask] for table in tables])
    assert weighted.min() > 100
    assert weighted.max() <= 6100
    assert all(int(table.b0_mask.sum()) >= 1 for table in tables)


def test_some_protocols_have_a_b_value_for_every_direction():
    tables = [draw_protocol(np.random.default_rng(seed)) for seed in range(60)]
    distinct = [
        len(torch.unique(table.bvals[~table.b0_mask])) / int((~table.b0_mask).sum()) for table in tables
    ]
    widths = [float(t.bvals[~t.b0_mask].max() / t.bvals[~t.b0_mask].min()) for t in tables]
    assert any(share == 1.0 and width > 1.5 for share, width in zip(distinct, widths, strict=True))


def test_what_is_played_out_differs_a_little_from_the_table():
    table = draw_protocol(np.random.default_rng(1))
    bvals, bvecs = played_out(table, np.random.default_rng(2))
    weighted = ~table.b0_mask
    angle = torch.rad2deg((bvecs[weighted] * table.bvecs[weighted]).sum(1).clamp(max=1).acos())
    assert 0.3 < angle.median() < 3
    assert_close(bvals, table.bvals, rtol=0.1, atol=0)
