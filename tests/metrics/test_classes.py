"""Class scores against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from dmri_monai.metrics import ClassificationScore, ConfusionMatrix
from dmri_monai.metrics.classes import accuracy, confusion_matrix, f1_scores

GENERATOR = torch.Generator().manual_seed(0)
TRUE = torch.randint(0, 4, (2, 1, 6, 7, 8), generator=GENERATOR)
GUESS = torch.randint(0, 4, TRUE.shape, generator=GENERATOR)
PRED = torch.where(torch.rand(TRUE.shape, generator=GENERATOR) < 0.7, TRUE, GUESS)


def one_hot(classes: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(classes[:, 0], 4).movedim(-1, 1).float()


def test_confusion_matrix_is_that_of_scikit_learn():
    metric = ConfusionMatrix()
    rows = metric(PRED, TRUE)
    for b in range(2):
        expected = sklearn.confusion_matrix(TRUE[b].flatten(), PRED[b].flatten())
        np.testing.assert_array_equal(rows[b].numpy(), expected)
    np.testing.assert_array_equal(
        metric.aggregate().numpy(), sklearn.confusion_matrix(TRUE.flatten(), PRED.flatten())
    )


def test_f1_of_every_class_and_subject_is_that_of_scikit_learn():
    metric = ClassificationScore()
    metric(PRED, TRUE)
    for b in range(2):
        expected = sklearn.f1_score(TRUE[b].flatten(), PRED[b].flatten(), average=None)
        np.testing.assert_allclose(metric.get_buffer()[b].numpy(), expected)
    macro = [sklearn.f1_score(TRUE[b].flatten(), PRED[b].flatten(), average="macro") for b in range(2)]
    np.testing.assert_allclose(metric.aggregate().item(), np.mean(macro))


def test_pooled_macro_f1_is_that_of_all_voxels():
    metric = ClassificationScore(pooled=True)
    metric(PRED[:1], TRUE[:1])
    metric(PRED[1:], TRUE[1:])
    expected = sklearn.f1_score(TRUE.flatten(), PRED.flatten(), average="macro")
    np.testing.assert_allclose(metric.aggregate().item(), expected)


def test_accuracy_is_that_of_scikit_learn():
    metric = ClassificationScore(score="accuracy")
    metric(PRED, TRUE)
    expected = [sklearn.accuracy_score(TRUE[b].flatten(), PRED[b].flatten()) for b in range(2)]
    np.testing.assert_allclose(metric.get_buffer()[:, 0].numpy(), expected)
    assert metric.names == ("accuracy",)


@pytest.mark.parametrize("form", ["scores", "one-hot-labels", "both"])
def test_scores_and_one_hot_labels_mean_the_same_as_class_numbers(form):
    pred = 5 * one_hot(PRED) - 2 if form != "one-hot-labels" else PRED
    true = one_hot(TRUE) if form != "scores" else TRUE
    torch.testing.assert_close(ConfusionMatrix()(pred, true), ConfusionMatrix()(PRED, TRUE))


@pytest.mark.parametrize("how", ["ignore-index", "nan", "mask", "empty-one-hot"])
def test_voxels_that_do_not_count_are_left_out(how):
    true, mask, inputs = TRUE.clone().float(), torch.ones_like(TRUE), {}
    if how == "mask":
        mask[..., :3] = 0
        inputs = {"mask": mask}
    elif how == "empty-one-hot":
        true = one_hot(TRUE)
        true[..., :3] = 0
    else:
        true[..., :3] = -1 if how == "ignore-index" else torch.nan
    torch.testing.assert_close(
        ConfusionMatrix()(PRED, true, **inputs), ConfusionMatrix()(PRED[..., 3:], TRUE[..., 3:])
    )


def test_a_class_that_is_nowhere_does_not_count():
    metric = ClassificationScore()
    metric(PRED.clamp(max=2), TRUE.clamp(max=2))
    assert metric.get_buffer()[:, 3].isnan().all()
    two = [(TRUE[b].clamp(max=2).flatten(), PRED[b].clamp(max=2).flatten()) for b in range(2)]
    expected = [sklearn.f1_score(*maps, average="macro") for maps in two]
    np.testing.assert_allclose(metric.aggregate().item(), np.mean(expected))


def test_a_class_that_does_not_exist_raises():
    with pytest.raises(ValueError, match="class map holds 4, expected 0 to 3"):
        ConfusionMatrix()(PRED, TRUE + 1)


def test_masks_that_are_fewer_than_the_subjects_raise():
    with pytest.raises(ValueError, match="mask of 1 subjects for 2 predictions"):
        ConfusionMatrix()(PRED, TRUE, mask=torch.ones(1, 1, 6, 7, 8))


def test_scores_are_those_of_the_textbook_to_the_last_bit():
    matrices = torch.randint(0, 50, (20, 3, 3), generator=GENERATOR)
    matrices[0, 1], matrices[0, :, 1] = 0, 0
    hits = matrices.diagonal(dim1=1, dim2=2).double()
    size = (matrices.sum(dim=1) + matrices.sum(dim=2)).double()
    expected = torch.where(size > 0, 2 * hits / size, torch.nan)
    torch.testing.assert_close(f1_scores(matrices), expected, atol=0, rtol=0, equal_nan=True)
    right = hits.sum(dim=1) / matrices.sum(dim=(1, 2))
    torch.testing.assert_close(accuracy(matrices), right[:, None], atol=0, rtol=0)


def test_without_voxels_there_is_no_score():
    empty = torch.zeros(0, dtype=torch.int64)
    matrix = confusion_matrix(empty, empty, 3)
    torch.testing.assert_close(matrix, torch.zeros(3, 3, dtype=torch.int64))
    assert f1_scores(matrix).isnan().all()
    assert accuracy(matrix).isnan().all()
