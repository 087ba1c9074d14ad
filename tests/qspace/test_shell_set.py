"""The shells of any table as a set of slots."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch.testing import assert_close

from dmri_monai.gradients import cluster_shells
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.shell_set import merged_shells, shell_channels, shell_irreps, shell_set
from dmri_monai.so3 import as_irreps, representation_matrix, sh_basis

ANISOTROPY = (0.3, 0.3, 1.7)  # diffusivities of a tensor along x, y, z, µm²/ms


def table(shells: dict[float, int], n_b0: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    bvals = torch.cat([torch.zeros(n_b0), *(torch.full((n,), b) for b, n in shells.items())]).double()
    bvecs = torch.cat(
        [torch.zeros(n_b0, 3, dtype=torch.float64), *(spread_directions(n) for n in shells.values())]
    )
    return bvals, bvecs


def attenuation(bvals: torch.Tensor, bvecs: torch.Tensor) -> torch.Tensor:
    return torch.exp(-bvals / 1000 * (bvecs.square() @ torch.tensor(ANISOTROPY, dtype=torch.float64)))


def test_shells_are_ascending_with_their_numbers_and_absent_slots_last():
    shells = shell_set(*table({3000.0: 50, 1000.0: 20}))
    assert shells.bvals.tolist() == [1000.0, 3000.0, 0.0, 0.0]
    assert shells.counts.tolist() == [20.0, 50.0, 0.0, 0.0]
    assert shells.matrix[2:].abs().max() == 0


def test_a_shell_with_enough_directions_gives_back_its_harmonics():
    bvals, bvecs = table({1000.0: 60})
    truth = torch.randn(15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signal = sh_basis(bvecs, 4) @ truth
    found = shell_set(bvals, bvecs).matrix[0] @ signal
    expected = truth / (1 + 1e-3 * torch.tensor([0.0] + 5 * [36.0] + 9 * [400.0]))  # the penalty's damping
    assert_close(found[:15], expected, rtol=0.02, atol=0.02)


def test_six_directions_are_taken_and_tell_the_tensor_axis():
    bvals, bvecs = table({1000.0: 6})
    found = shell_set(bvals, bvecs).matrix[0] @ attenuation(bvals, bvecs)
    values = sh_basis(torch.eye(3, dtype=torch.float64), 6)[:, 1:6] @ found[1:6]
    assert values.argmin() == 2


def test_several_b_values_in_one_slot_do_not_pass_for_anisotropy():
    """An isotropic signal on a grid of b-values, whose directions differ from ring to ring."""
    bvals, bvecs = table({2400.0: 9, 2700.0: 14, 3000.0: 8, 3300.0: 12, 3600.0: 6})
    signal = torch.exp(-0.8 * bvals / 1000)
    shells = shell_set(bvals, bvecs, slots=1)
    found = shells.matrix[0] @ signal
    expected = math.sqrt(4 * math.pi) * math.exp(-0.8 * float(shells.bvals[0]) / 1000)
    assert_close(float(found[0]), expected, rtol=0.05, atol=0)
    plain = shell_set(torch.where(bvals > 0, 3000.0, 0.0), bvecs, slots=1).matrix[0] @ signal  # the control
    assert found[1:].norm() < 0.3 * plain[1:].norm()


def test_more_shells_than_slots_are_merged_by_nearest_b_with_a_message(caplog):
    bvals, bvecs = table({700.0: 10, 1000.0: 30, 1300.0: 10, 2500.0: 30, 2800.0: 30})
    with caplog.at_level(logging.INFO):
        shells = shell_set(bvals, bvecs, slots=2)
    assert shells.bvals.tolist() == [1000.0, 2650.0]
    assert shells.counts.tolist() == [50.0, 60.0]
    assert "5 shells in 2 slots, merged by nearest b: 1000, 2650 s/mm²" in caplog.text


def test_merging_keeps_every_measurement_once():
    bvals, _ = table({float(b): 5 for b in range(500, 5000, 400)})
    merged = merged_shells(cluster_shells(bvals), 3)
    indices = torch.cat([shell.indices for shell in merged]).sort().values
    assert_close(indices, torch.nonzero(bvals > 50).flatten())


def test_channels_turn_with_the_directions():
    bvals, bvecs = table({1000.0: 30, 2000.0: 45})
    image = 100 * attenuation(bvals, bvecs).view(-1, 1, 1, 1).float().expand(-1, 2, 2, 2)
    turn, _ = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    before = shell_channels(image, bvals, shell_set(bvals, bvecs, slots=3))
    after = shell_channels(image, bvals, shell_set(bvals, bvecs @ turn.T, slots=3))
    irreps = shell_irreps(3, 6)
    assert len(before) == as_irreps(irreps).dim
    assert_close(
        after,
        torch.einsum("ij,jxyz->ixyz", representation_matrix(irreps, turn).float(), before),
        atol=1e-4,
        rtol=0,
    )
    assert (after - before).abs().max() > 0.1


def test_scalar_channels_hold_b0_means_presence_b_and_log_n():
    bvals, bvecs = table({1000.0: 30, 2000.0: 45})
    image = 100 * torch.exp(-0.7 * bvals / 1000).view(-1, 1, 1, 1).float().expand(-1, 2, 2, 2)
    scalars = shell_channels(image, bvals, shell_set(bvals, bvecs, slots=3))[:13, 0, 0, 0].tolist()
    mean = [math.sqrt(4 * math.pi) * math.exp(-0.7), math.sqrt(4 * math.pi) * math.exp(-1.4), 0.0]
    expected = [1.0, *mean, 1.0, 1.0, 0.0, 1.0, 2.0, 0.0, math.log(30), math.log(45), 0.0]
    assert scalars == pytest.approx(expected, abs=2e-3)


def test_air_is_zero():
    bvals, bvecs = table({1000.0: 12})
    image = torch.full((14, 3, 3, 3), 100.0)
    image[:, 0] = 1.0
    assert shell_channels(image, bvals, shell_set(bvals, bvecs))[1:5, 0].abs().max() == 0


def test_a_table_without_diffusion_weighting_is_refused():
    with pytest.raises(ValueError, match="no b-value above 50"):
        shell_set(torch.zeros(3), torch.zeros(3, 3))
