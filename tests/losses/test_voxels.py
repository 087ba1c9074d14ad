import pytest
import torch
from monai.losses import DiceFocalLoss
from torch.nn import functional as F

from dmri_monai.losses import CountedVoxelsLoss, LesionBCELoss, OneHotL1Loss

SIZE = (4, 5, 6)


def draw(channels=1, batch=2):
    generator = torch.Generator().manual_seed(0)
    pred = torch.randn(batch, channels, *SIZE, generator=generator)
    return pred, (torch.rand(batch, 1, *SIZE, generator=generator) > 0.7).float()


def test_counted_voxels_are_those_of_the_loss_itself_where_all_count():
    pred, label = draw()
    loss = DiceFocalLoss(sigmoid=True)
    torch.testing.assert_close(CountedVoxelsLoss(loss)(pred, label), loss(pred, label))


@pytest.mark.parametrize("ignored", [-1.0, float("nan")], ids=["negative", "nan"])
def test_ignored_voxels_change_neither_loss_nor_gradient(ignored):
    pred, label = draw()
    label[..., :3] = ignored
    values = []
    for shift in (0.0, 5.0):
        moved = pred.clone()
        moved[..., :3] += shift
        moved.requires_grad_()
        loss = CountedVoxelsLoss(DiceFocalLoss(sigmoid=True))(moved, label)
        loss.backward()
        assert float(moved.grad[..., :3].abs().max()) == 0
        values.append(loss.detach())
    torch.testing.assert_close(*values)


def test_loss_without_a_voxel_that_counts_is_zero_and_has_a_gradient():
    pred, label = draw()
    pred.requires_grad_()
    loss = CountedVoxelsLoss(DiceFocalLoss(sigmoid=True))(pred, torch.full_like(label, -1))
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(pred.grad.abs().max()) == 0


def test_lesion_loss_is_torch_bce_inside_the_mask():
    pred, label = draw()
    masked = label.clone()
    masked[..., :2] = -1
    inside = masked >= 0
    expected = F.binary_cross_entropy_with_logits(pred[inside], label[inside], pos_weight=torch.tensor(7.0))
    torch.testing.assert_close(LesionBCELoss(7.0)(pred, masked), expected)


def test_balanced_lesion_loss_weighs_both_classes_alike():
    label = torch.zeros(1, 1, *SIZE)
    label[0, 0, 0, 0, 0] = 1
    pred = torch.zeros_like(label, requires_grad=True)
    LesionBCELoss()(pred, label).backward()
    positive = float(pred.grad[label > 0].sum())
    torch.testing.assert_close(-positive, float(pred.grad[label == 0].sum()))


def test_one_hot_loss_is_the_mean_absolute_difference():
    label = torch.randint(0, 3, (2, 1, *SIZE), generator=torch.Generator().manual_seed(1)).float()
    one_hot = F.one_hot(label[:, 0].long(), 3).movedim(-1, 1).float()
    loss = OneHotL1Loss()
    assert float(loss(one_hot, label)) == 0
    torch.testing.assert_close(loss(one_hot + 0.5, label), torch.tensor(0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, t: OneHotL1Loss()(p, t + 5), "label holds class"),
        (lambda p, t: LesionBCELoss()(torch.cat([p, p], dim=1), t), "lesion prediction has shape"),
        (lambda p, t: CountedVoxelsLoss(DiceFocalLoss(sigmoid=True))(p, t[..., 1:]), "label has shape"),
        (lambda p, t: LesionBCELoss(0.0), "pos_weight is 0.0"),
    ],
    ids=["class", "channels", "size", "weight"],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*draw())
