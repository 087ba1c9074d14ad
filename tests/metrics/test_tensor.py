"""FA and V1 errors against DIPY's tensor fit and tensors that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel

from dmri_monai.metrics import HarmonicTensorError, TensorError
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.harmonics import signal_to_harmonics
from dmri_monai.qspace.shell_fit import ShellFit

B, SHAPE = 1000.0, (4, 5, 6)


def table() -> tuple[torch.Tensor, torch.Tensor]:
    bvecs = torch.cat([torch.zeros(4, 3).double(), spread_directions(40)])
    return torch.cat([torch.zeros(4), torch.full((40,), B)])[None], bvecs[None]


def scan(seed: int, noise: float = 0.0, turn_deg: float = 0.0) -> torch.Tensor:
    """(1, 44, 4, 5, 6) signals of axial tensors of random directions and anisotropies, turned about z."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(*SHAPE, 3))
    v /= np.linalg.norm(v, axis=-1, keepdims=True)
    axial, angle = rng.uniform(1.2e-3, 1.8e-3, SHAPE)[..., None], np.deg2rad(turn_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    bvals, bvecs = (t[0].double().numpy() for t in table())
    along = (v @ turn.T @ bvecs.T) ** 2
    signal = 1000 * np.exp(-bvals * (0.4e-3 + (axial - 0.4e-3) * along))
    signal = np.abs(signal + noise * np.random.default_rng(seed + 1).normal(size=signal.shape))
    return torch.tensor(signal, dtype=torch.float32).movedim(-1, 0)[None]


def inputs() -> dict[str, torch.Tensor]:
    bvals, bvecs = table()
    return {"bvals": bvals, "bvecs_voxel": bvecs}


def test_errors_are_those_of_dipys_fits():
    gtab = gradient_table(table()[0][0].numpy(), bvecs=table()[1][0].numpy())
    fits = [
        TensorModel(gtab, fit_method="WLS").fit(s[0].movedim(0, -1).numpy()) for s in (scan(0, 40.0), scan(0))
    ]
    dots = np.abs((fits[0].evecs[..., 0] * fits[1].evecs[..., 0]).sum(-1)).clip(max=1)
    error = fits[0].fa - fits[1].fa
    expected = [np.abs(error).mean(), error.mean(), np.median(np.rad2deg(np.arccos(dots)))]
    row = TensorError()(scan(0, 40.0), scan(0), **inputs())
    np.testing.assert_allclose(row[0].numpy(), expected, rtol=0.02, atol=1e-4)


def test_v1_error_of_turned_fibres_is_at_most_the_angle_and_fa_stays():
    row = TensorError()(scan(0, turn_deg=20.0), scan(0), **inputs())
    assert row[0, 0] < 0.01
    assert 5 < row[0, 2] < 20


def test_equal_scans_have_no_error():
    np.testing.assert_allclose(TensorError()(scan(0), scan(0), **inputs()).numpy(), 0, atol=1e-4)


def test_noise_raises_fa():
    assert TensorError()(scan(0, 150.0), scan(0), **inputs())[0, 1] > 0.02


def test_voxels_outside_the_mask_do_not_count():
    mixed, mask = scan(0, 100.0), torch.zeros(1, 1, *SHAPE)
    mask[..., :3] = 1
    mixed[..., :3] = scan(0)[..., :3]
    assert TensorError()(mixed, scan(0), mask=mask, **inputs())[0, 0] < 1e-4
    assert TensorError()(mixed, scan(0), **inputs())[0, 0] > 1e-2


def test_padding_does_not_enter_the_fit():
    valid = torch.tensor([[True] * 44 + [False] * 2])
    longer = {
        "bvals": torch.cat([inputs()["bvals"], torch.zeros(1, 2)], dim=1),
        "bvecs_voxel": torch.cat([inputs()["bvecs_voxel"], torch.zeros(1, 2, 3).double()], dim=1),
        "valid": valid,
    }
    junk = torch.full((1, 2, *SHAPE), 5.0)
    padded = [torch.cat([s, junk], dim=1) for s in (scan(0, 40.0), scan(0))]
    torch.testing.assert_close(
        TensorError()(*padded, **longer), TensorError()(scan(0, 40.0), scan(0), **inputs())
    )


def test_a_table_that_is_not_given_is_named():
    with pytest.raises(ValueError, match=r"\['bvals', 'bvecs_voxel'\] not given; name them in MetricHandler"):
        TensorError()(scan(0), scan(0))


@pytest.mark.parametrize("order_scale", [None, [1.0, 15.0, 20.0]], ids=["orthonormal", "scaled"])
def test_harmonic_channels_have_the_errors_of_the_signals_they_stand_for(order_scale):
    fit = ShellFit(smoothing=0.0, order_scale=order_scale)
    channels = [signal_to_harmonics(s, *table(), shells=[B], fit=fit) for s in (scan(0, 30.0), scan(0))]
    row = HarmonicTensorError([B], fit=fit)(*channels)
    signal = TensorError()(scan(0, 30.0), scan(0), **inputs())
    torch.testing.assert_close(row, signal, rtol=0.15, atol=5e-3)


def test_air_does_not_count_among_harmonics():
    clean, noisy = scan(0), scan(0)
    clean[..., 0] *= 0.01
    noisy[..., 0] = 10 * torch.rand(1, 44, 4, 5, generator=torch.Generator().manual_seed(0))
    channels = [signal_to_harmonics(s, *table(), shells=[B]) for s in (noisy, clean)]
    channels[0][:, 1:, ..., 0] += 0.3
    assert HarmonicTensorError([B])(*channels)[0, 0] < 1e-3


def test_b0_volumes_above_the_default_threshold_do_not_count_as_a_shell():
    """With b = 100 as b0 and b = 2000 above `b_max`, the volumes at 100 alone would determine no tensor."""
    bvals = torch.where(table()[0] == 0, 100.0, 2000.0)
    given = {"bvals": bvals, "bvecs_voxel": table()[1]}
    with pytest.raises(ValueError, match="cannot determine a tensor"):
        TensorError()(scan(0), scan(0), **given)
    row = TensorError(b0_threshold=100.0)(scan(0), scan(0), **given)
    np.testing.assert_allclose(row.numpy(), 0, atol=1e-4)
