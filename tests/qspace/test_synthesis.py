"""Signal from harmonic channels: the inverse of the fit, channel by channel."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.harmonics import signal_to_harmonics
from dmri_monai.qspace.shell_fit import ShellFit, harmonic_irreps
from dmri_monai.qspace.synthesis import channel_groups, harmonics_to_signal, measurement_groups
from dmri_monai.so3 import sh_basis

SHELLS = (700.0, 2000.0)


def table(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    bvals = torch.cat([torch.zeros(1), torch.full((n,), 700.0), torch.full((n,), 2000.0)])
    bvecs = torch.cat([torch.zeros(1, 3).double(), spread_directions(n), spread_directions(n)])
    return bvals.unsqueeze(0), bvecs.unsqueeze(0)


@pytest.mark.parametrize("order_scale", [None, [1.0, 15.0, 20.0]], ids=["orthonormal", "scaled"])
@pytest.mark.parametrize("missing", ["error", "zero"])
def test_a_band_limited_scan_is_synthesised_from_its_own_fit(missing, order_scale):
    bvals, bvecs = table()
    generator = torch.Generator().manual_seed(0)
    coefficients = 0.05 * torch.randn(2, 15, 6, dtype=torch.float64, generator=generator)
    coefficients[:, 0] += 1.5
    ratio = torch.cat(
        [torch.ones(1, 6).double(), *(sh_basis(spread_directions(40), 4) @ c for c in coefficients)]
    )
    image = (900 * ratio).view(1, 81, 1, 2, 3)
    fit = ShellFit(missing=missing, smoothing=0.0, order_scale=order_scale)
    harmonics = signal_to_harmonics(image, bvals, bvecs, shells=SHELLS, fit=fit)
    signal = harmonics_to_signal(harmonics, bvals, bvecs, shells=SHELLS, fit=fit)
    torch.testing.assert_close(signal.view(81, 6).double(), ratio, atol=1e-5, rtol=0)


@pytest.mark.parametrize("presence", [False, True])
def test_groups_have_the_layout_of_the_irreps(presence):
    groups = channel_groups(2, 4, presence)
    assert len(groups) == o3.Irreps(harmonic_irreps(2, 4, presence)).dim
    assert [(groups == s).sum().item() for s in (0, 1, 2)] == [1, 15, 15]


def test_turning_harmonics_and_table_together_leaves_the_signal():
    bvals, bvecs = table()
    harmonics = torch.randn(1, 31, 1, 1, 4, dtype=torch.float64)
    rotation = o3.rand_matrix(dtype=torch.float64)
    turned = torch.einsum(
        "ij,bjxyz->bixyz", o3.Irreps(harmonic_irreps(2, 4)).D_from_matrix(rotation), harmonics
    )
    expected = harmonics_to_signal(harmonics, bvals, bvecs, shells=SHELLS)
    torch.testing.assert_close(
        harmonics_to_signal(turned, bvals, bvecs @ rotation.T, shells=SHELLS),
        expected,
        atol=1e-5,  # e3nn's rotation matrices of l = 4 are good to about 1e-6
        rtol=0,
    )
    assert (harmonics_to_signal(turned, bvals, bvecs, shells=SHELLS) - expected).abs().max() > 0.1


def test_padding_and_other_shells_belong_to_no_group():
    bvals = torch.tensor([[0.0, 690, 1300, 2010, 0, 700]])
    valid = torch.tensor([[True, True, True, True, False, False]])
    assert measurement_groups(bvals, SHELLS, valid=valid).tolist() == [[0, 1, -1, 2, -1, -1]]


def test_wrong_channels_raise_with_both_numbers():
    with pytest.raises(
        ValueError, match=r"\(1, 30, 1, 1, 1\), expected \(B, 31, X, Y, Z\) for 2 shells, l_max = 4"
    ):
        harmonics_to_signal(torch.zeros(1, 30, 1, 1, 1), *table(), shells=SHELLS)
