"""Losses of orientation densities and of volume fractions: what they are zero for, and what does not count."""

import pytest
import torch
from torch.testing import assert_close

from dmri_monai.equivariant.sphere_activation import sphere_grid
from dmri_monai.losses import DensityLoss, FractionsLoss
from dmri_monai.so3 import sh_basis

SIZE = (3, 4, 5)


def random(*channels, seed=0):
    return torch.randn(*channels, *SIZE, generator=torch.Generator().manual_seed(seed))


def test_density_loss_is_the_squared_error_over_the_sphere():
    pred, target = random(1, 45), random(1, 45, seed=1)
    points, weights = sphere_grid(17)
    values = torch.einsum("pc,bcxyz->bpxyz", sh_basis(points, 8).float(), pred - target)
    integral = torch.einsum("p,bpxyz->bxyz", weights.float(), values.square())
    assert_close(DensityLoss()(pred, target), integral.mean())
    assert float(DensityLoss()(target, target)) == 0


def test_voxels_of_unknown_truth_or_outside_the_mask_do_not_count():
    pred, target = random(2, 45), random(2, 45, seed=1)
    mask = torch.ones(2, 1, *SIZE)
    mask[..., 0] = 0
    unknown = target.clone()
    unknown[..., 0] = torch.nan
    spoilt = pred.clone()
    spoilt[..., 0] = 99.0
    for loss in (DensityLoss()(spoilt, unknown), DensityLoss()(spoilt, target, mask)):
        assert_close(loss, DensityLoss()(pred[..., 1:], target[..., 1:]))
    spoilt[..., 0] = torch.nan
    assert_close(DensityLoss()(spoilt, target, mask), DensityLoss()(pred[..., 1:], target[..., 1:]))
    pred.requires_grad_()
    DensityLoss()(pred, unknown).backward()
    assert pred.grad.isfinite().all()
    assert pred.grad[..., 0].abs().max() == 0


def test_fractions_loss_is_least_where_the_fractions_are_the_true_ones():
    true = random(2, 4).softmax(dim=1)
    logits = true.log() + 0.7  # a constant changes nothing
    assert float(FractionsLoss()(logits, true[:, :3])) == pytest.approx(0, abs=1e-6)
    logits.requires_grad_()
    FractionsLoss()(logits, true[:, :3]).backward()
    assert float(logits.grad.abs().max()) < 1e-6
    assert float(FractionsLoss()(logits + 0.5 * random(2, 4, seed=2), true[:, :3])) > 0.01


def test_pure_voxels_and_unknown_ones_have_a_finite_loss():
    pure = torch.zeros(1, 3, *SIZE)
    pure[:, 1] = 1
    pure[..., 0] = torch.nan
    logits = (
        30 * torch.nn.functional.one_hot(torch.ones(1, *SIZE, dtype=torch.long), 4).movedim(-1, 1).float()
    )
    assert float(FractionsLoss()(logits, pure)) == pytest.approx(0, abs=1e-6)
    assert float(FractionsLoss()(-logits, pure)) > 10


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(
        ValueError, match=r"density has shape \(1, 28, 3, 4, 5\), expected \(1, 45, 3, 4, 5\)"
    ):
        DensityLoss()(random(1, 28), random(1, 45))
    with pytest.raises(
        ValueError, match=r"fractions has shape \(1, 4, 3, 4, 5\), expected \(1, 3, 3, 4, 5\)"
    ):
        FractionsLoss()(random(1, 4), random(1, 4))
