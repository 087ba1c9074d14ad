"""Loss of the number of fibres against torch's cross entropy and the definition of the ranked score."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dmri_monai.losses import CrossingsLoss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(2, 4, 3, 4, 5, dtype=torch.float64, generator=GENERATOR)
CLASSES = torch.randint(0, 4, (2, 1, 3, 4, 5), generator=GENERATOR).float()


def certain(of: int) -> torch.Tensor:
    """Logits of one voxel that is sure of a class."""
    return torch.where(torch.arange(4) == of, 50.0, 0.0).view(1, 4, 1, 1, 1)


def label(of: float) -> torch.Tensor:
    return torch.full((1, 1, 1, 1, 1), of)


def test_without_the_ordinal_part_it_is_cross_entropy():
    expected = F.cross_entropy(LOGITS, CLASSES[:, 0].long())
    torch.testing.assert_close(CrossingsLoss()(LOGITS, CLASSES), expected)


def test_class_weights_are_those_of_cross_entropy():
    weights = [0.5, 1.0, 2.0, 3.0]
    expected = F.cross_entropy(LOGITS, CLASSES[:, 0].long(), weight=LOGITS.new_tensor(weights))
    torch.testing.assert_close(CrossingsLoss(class_weights=weights)(LOGITS, CLASSES), expected)


@pytest.mark.parametrize("off", [0, 1, 2, 3])
def test_ordinal_part_of_a_sure_answer_is_how_many_fibres_it_is_off(off):
    sure = certain(off), label(0.0)
    ordinal = CrossingsLoss(ordinal=1.0)(*sure) - CrossingsLoss()(*sure)
    torch.testing.assert_close(float(ordinal), float(off), atol=1e-5, rtol=0)


def test_cross_entropy_alone_does_not_know_how_far_off_an_answer_is():
    torch.testing.assert_close(
        CrossingsLoss()(certain(1), label(0.0)), CrossingsLoss()(certain(3), label(0.0))
    )


def test_true_probabilities_have_the_smallest_expected_ordinal_loss():
    truth = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    logits = truth.log().view(1, 4, 1, 1, 1).requires_grad_()
    expected = sum(p * CrossingsLoss(ordinal=1.0)(logits, label(float(k))) for k, p in enumerate(truth))
    (gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


@pytest.mark.parametrize("ignored", [-1.0, float("nan")], ids=["ignore-index", "nan"])
def test_ignored_voxels_count_for_nothing(ignored):
    classes, logits = CLASSES.clone(), LOGITS.clone().requires_grad_()
    classes[:, :, 0] = ignored
    loss = CrossingsLoss(ordinal=0.5)(logits, classes)
    torch.testing.assert_close(loss, CrossingsLoss(ordinal=0.5)(LOGITS[:, :, 1:], CLASSES[:, :, 1:]))
    loss.backward()
    assert logits.grad[:, :, 0].abs().max() == 0


def test_voxels_outside_the_mask_count_for_nothing_whatever_their_label():
    classes, mask = CLASSES.clone(), torch.ones_like(CLASSES)
    mask[..., 0], classes[..., 0] = 0, 77
    expected = CrossingsLoss()(LOGITS[..., 1:], CLASSES[..., 1:])
    torch.testing.assert_close(CrossingsLoss()(LOGITS, classes, mask), expected)


def test_one_mask_serves_a_whole_batch():
    mask = torch.zeros(1, 1, 3, 4, 5)
    mask[..., :2] = 1
    expected = CrossingsLoss()(LOGITS[..., :2], CLASSES[..., :2])
    torch.testing.assert_close(CrossingsLoss()(LOGITS, CLASSES, mask), expected)


def test_gradient_is_that_of_finite_differences():
    loss = CrossingsLoss(ordinal=0.7, class_weights=[1, 2, 3, 4])
    torch.autograd.gradcheck(lambda p: loss(p, CLASSES[:1]), LOGITS[:1].clone().requires_grad_())


def test_no_voxel_at_all_gives_zero_and_a_zero_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss = CrossingsLoss()(logits, torch.full_like(CLASSES, -1))
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("wrong", [4.0, -2.0])
def test_a_class_that_does_not_exist_raises(wrong):
    classes = CLASSES.clone()
    classes[0, 0, 0, 0, 0] = wrong
    with pytest.raises(ValueError, match=rf"classes .*{int(wrong)}.*, expected 0 to 3"):
        CrossingsLoss()(LOGITS, classes)


def test_labels_of_another_grid_raise_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(2, 1, 3, 4, 4\), expected \(2, 1, 3, 4, 5\)"):
        CrossingsLoss()(LOGITS, CLASSES[..., 1:])
