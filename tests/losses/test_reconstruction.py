"""Reconstruction losses in the harmonic and the signal domain, which must tell the same story."""

from __future__ import annotations

import math

import pytest
import torch

from dmri_monai.losses import HarmonicReconstructionLoss, MaskedReconstructionLoss, SignalReconstructionLoss
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.harmonics import signal_to_harmonics
from dmri_monai.qspace.shell_fit import ShellFit
from dmri_monai.qspace.synthesis import channel_groups, harmonics_to_signal

SHELLS = (1000.0, 3000.0)
N_CHANNELS = 31  # b0 and 2 shells of 15
SHAPE = (3, 4, 5)


def channels(seed: int, n: int = N_CHANNELS) -> torch.Tensor:
    values = 0.02 * torch.randn(
        2, n, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    values[:, 0] += 1.0
    values[:, 1:3] += 1.5  # S/S0 around 0.4
    return values


def table(n: int = 30, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, N) b-values and (2, N, 3) b-vectors: 2 b0 and n directions per shell."""
    directions = spread_directions(n)
    bvals = torch.cat([torch.zeros(2), *(torch.full((n,), b) for b in SHELLS)]).double()
    bvecs = torch.cat([torch.zeros(2, 3).double(), directions, directions])
    return bvals.expand(2, -1), bvecs.expand(2, -1, -1)


def scan(harmonics: torch.Tensor, n: int = 30) -> dict[str, torch.Tensor]:
    """The raw scan whose harmonics are `harmonics`; the b0's median is 1."""
    bvals, bvecs = table(n)
    ratio = harmonics_to_signal(harmonics, bvals, bvecs, shells=SHELLS)
    b0 = harmonics[:, :1] / harmonics[:, 0].flatten(1).median(dim=1).values.view(-1, 1, 1, 1, 1)
    return {"image": b0 * ratio, "bvals": bvals, "bvecs_voxel": bvecs}


def normalised(harmonics: torch.Tensor) -> torch.Tensor:
    out = harmonics.clone()
    out[:, 0] /= harmonics[:, 0].flatten(1).median(dim=1).values.view(-1, 1, 1, 1)
    return out


# --- harmonic domain


def test_without_weights_it_is_the_mean_squared_error_inside_the_head():
    pred, target = channels(0), channels(1)
    target[:, 0, 0] = 0.0  # air
    expected = (pred - target)[:, :, 1:].square().mean()
    torch.testing.assert_close(HarmonicReconstructionLoss()(pred, target), expected)


@pytest.mark.parametrize("shell", [0, 1])
def test_error_of_a_shell_counts_by_its_weight(shell):
    target = channels(0)
    pred = target + (channel_groups(2, 4) == shell + 1).view(1, -1, 1, 1, 1)
    weights = [2.0, 6.0]
    expected = 15 * weights[shell] / (1.0 + 15 * sum(weights))
    loss = HarmonicReconstructionLoss(shell_weights=weights)(pred, target)
    torch.testing.assert_close(float(loss), expected)


def test_b0_of_weight_zero_does_not_count():
    target, pred = channels(0), channels(0)
    pred[:, 0] += 1
    assert HarmonicReconstructionLoss(b0_weight=0.0)(pred, target) == 0
    assert HarmonicReconstructionLoss()(pred, target) > 0


def test_shells_that_the_target_lacks_do_not_count():
    target, pred = channels(0, N_CHANNELS + 2), channels(1, N_CHANNELS + 2)
    groups = channel_groups(2, 4, presence=True)
    target[:, 3:5] = 1.0
    target[1, 4] = 0.0  # the second item lacks the second shell
    changed = pred.clone()
    changed[1, groups == 2] += 7
    changed[:, 3:5] += 7  # presence channels hold nothing to restore
    loss = HarmonicReconstructionLoss(shell_weights=[1.0, 1.0], presence=True)
    torch.testing.assert_close(loss(changed, target), loss(pred, target))
    changed[0, groups == 2] += 7
    assert loss(changed, target) > loss(pred, target) + 1


def test_mask_takes_the_place_of_the_foreground():
    pred, target, mask = channels(0), channels(1), torch.zeros(2, 1, *SHAPE)
    mask[..., 0] = 1
    expected = (pred - target)[..., 0].square().mean()
    torch.testing.assert_close(HarmonicReconstructionLoss()(pred, target, mask), expected)


def test_channels_that_do_not_fit_the_shells_raise_with_both_numbers():
    with pytest.raises(ValueError, match="31 channels, expected 46 for 3 shells"):
        HarmonicReconstructionLoss(shell_weights=[1, 1, 1])(channels(0), channels(1))


# --- signal domain


def test_loss_of_the_true_harmonics_is_zero():
    assert SignalReconstructionLoss(SHELLS)(normalised(channels(0)), scan(channels(0))) < 1e-12


def test_harmonics_fitted_to_a_scan_reconstruct_it():
    clean = scan(channels(0))
    fit = ShellFit(smoothing=0.0, order_scale=[1.0, 6.0, 12.0])
    fitted = signal_to_harmonics(clean["image"], clean["bvals"], clean["bvecs_voxel"], shells=SHELLS, fit=fit)
    loss = SignalReconstructionLoss(SHELLS, fit=fit)
    assert loss(fitted, clean) < 1e-6 * loss(normalised(channels(1)), clean)


def test_with_spread_directions_it_is_the_harmonic_loss_over_the_sphere():
    pred, truth = normalised(channels(1)), normalised(channels(0))
    signal = SignalReconstructionLoss(SHELLS, b0_weight=0.0)(pred, scan(channels(0), n=120))
    harmonic = HarmonicReconstructionLoss(shell_weights=[1.0, 1.0], b0_weight=0.0)(pred, truth)
    # mean over the sphere = sum over 15 coefficients / 4 pi
    torch.testing.assert_close(signal, 15 * harmonic / (4 * math.pi), rtol=0.01, atol=0)


def test_a_shell_counts_by_its_weight_not_by_its_number_of_directions():
    clean, pred = scan(channels(0)), normalised(channels(0))
    pred[:, 1] += 0.1 * math.sqrt(4 * math.pi)  # S/S0 of the first shell + 0.1
    loss = SignalReconstructionLoss(SHELLS, shell_weights=[3.0, 1.0], b0_weight=1.0)
    half = torch.ones(2, 62, dtype=torch.bool)
    half[:, 12:32] = False  # 10 of 30 directions of the first shell are left
    for target in (clean, {**clean, "valid": half}):
        torch.testing.assert_close(float(loss(pred, target)), 0.1**2 * 3 / 5)


def test_padding_and_other_shells_do_not_count():
    clean, pred = scan(channels(0)), normalised(channels(1))
    junk = torch.full((2, 4, *SHAPE), 9.0).double()
    longer = {
        "image": torch.cat([clean["image"], junk], dim=1),
        "bvals": torch.cat([clean["bvals"], torch.tensor([[0.0, 1000, 2000, 0]] * 2).double()], dim=1),
        "bvecs_voxel": torch.cat([clean["bvecs_voxel"], torch.ones(2, 4, 3).double()], dim=1),
        "valid": torch.tensor([[True] * 62 + [False, False, True, False]] * 2),
    }
    loss = SignalReconstructionLoss(SHELLS)
    torch.testing.assert_close(loss(pred, longer), loss(pred, clean))


def test_voxels_outside_the_mask_do_not_count():
    clean, pred, mask = scan(channels(0)), normalised(channels(0)), torch.zeros(2, 1, *SHAPE)
    mask[..., :2] = 1
    pred[:, 1:, ..., 2:] += 5
    loss = SignalReconstructionLoss(SHELLS, b0_weight=0.0)
    assert loss(pred, {**clean, "mask": mask}) < 1e-12
    assert loss(pred, clean) > 1


def test_a_prediction_in_half_precision_leaves_the_target_as_it_is():
    target, pred = scan(channels(0)), channels(1).bfloat16()
    loss = SignalReconstructionLoss(SHELLS)
    torch.testing.assert_close(loss(pred, target), loss(pred.float(), target), rtol=0, atol=0)


def test_scaling_the_raw_scan_changes_nothing():
    clean, pred = scan(channels(0)), normalised(channels(1))
    loss = SignalReconstructionLoss(SHELLS)
    torch.testing.assert_close(loss(pred, {**clean, "image": 731 * clean["image"]}), loss(pred, clean))


def test_gradient_of_the_signal_loss_is_that_of_finite_differences():
    clean, pred = scan(channels(0)), normalised(channels(1))
    small = {k: v[:1, :, :1, :1, :2] if k == "image" else v[:1] for k, v in clean.items()}
    loss = SignalReconstructionLoss(SHELLS, shell_weights=[1.0, 2.0])
    torch.autograd.gradcheck(lambda p: loss(p, small), pred[:1, :, :1, :1, :2].clone().requires_grad_())


def test_presence_channels_are_passed_over():
    pred = normalised(channels(1))
    with_presence = torch.cat([pred[:, :3], torch.ones(2, 2, *SHAPE).double(), pred[:, 3:]], dim=1)
    loss = SignalReconstructionLoss(SHELLS, fit=ShellFit(missing="zero"))
    clean = scan(channels(0))
    torch.testing.assert_close(loss(with_presence, clean), SignalReconstructionLoss(SHELLS)(pred, clean))


def test_a_scan_without_a_table_is_named():
    clean = scan(channels(0))
    del clean["bvecs_voxel"]
    with pytest.raises(ValueError, match=r"no \['bvecs_voxel'\] in the target"):
        SignalReconstructionLoss(SHELLS)(channels(0), clean)


def test_channels_that_do_not_fit_the_table_raise_with_both_numbers():
    with pytest.raises(ValueError, match=r"\(2, 31, 3, 4, 5\), expected \(B, 16, X, Y, Z\) for 1 shells"):
        SignalReconstructionLoss([1000.0])(channels(0), scan(channels(0)))


# --- hidden measurements


def hidden_half() -> torch.Tensor:
    return (torch.arange(62) % 2 == 0).expand(2, -1) & (table()[0] > 0)


def test_only_hidden_measurements_count():
    clean, pred, hidden = scan(channels(0)), normalised(channels(1)), hidden_half()
    loss = MaskedReconstructionLoss(SignalReconstructionLoss(SHELLS, b0_weight=0.0))
    seen = (~hidden & (clean["bvals"] > 0))[..., None, None, None]
    other = clean["image"] * torch.where(seen, 1.7, 1.0)
    expected = loss(pred, {**clean, "hidden": hidden})
    torch.testing.assert_close(loss(pred, {**clean, "image": other, "hidden": hidden}), expected)
    assert (SignalReconstructionLoss(SHELLS)(pred, {**clean, "image": other}) - expected).abs() > 1e-3


def test_hidden_error_is_that_of_a_scan_of_the_hidden_measurements():
    clean, pred, hidden = scan(channels(0)), normalised(channels(1)), hidden_half()
    alone = {**clean, "valid": hidden | (clean["bvals"] == 0)}
    expected = SignalReconstructionLoss(SHELLS, b0_weight=0.0)(pred, alone)
    masked = MaskedReconstructionLoss(SignalReconstructionLoss(SHELLS, b0_weight=0.0))
    torch.testing.assert_close(masked(pred, {**clean, "hidden": hidden}), expected)


def test_visible_weight_one_is_the_reconstruction_of_everything():
    clean, pred = {**scan(channels(0)), "hidden": hidden_half()}, normalised(channels(1))
    whole = SignalReconstructionLoss(SHELLS)
    torch.testing.assert_close(
        MaskedReconstructionLoss(whole, visible_weight=1.0)(pred, clean), whole(pred, clean)
    )


def test_nothing_hidden_is_no_loss():
    clean = {**scan(channels(0)), "hidden": torch.zeros(2, 62, dtype=torch.bool)}
    pred = normalised(channels(1)).requires_grad_()
    loss = MaskedReconstructionLoss(SignalReconstructionLoss(SHELLS, b0_weight=0.0))(pred, clean)
    loss.backward()
    assert loss == 0
    assert pred.grad.abs().max() == 0


def test_a_target_that_does_not_say_what_is_hidden_is_an_error():
    with pytest.raises(ValueError, match="no 'hidden' in the target"):
        MaskedReconstructionLoss(SignalReconstructionLoss(SHELLS))(channels(0), scan(channels(0)))
