"""Average precision and ROC area against scikit-learn: exact a subject, pooled from a histogram."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from dmri_monai.metrics import VoxelRanking
from dmri_monai.metrics.ranking import score_bins

SKLEARN = {"average_precision": average_precision_score, "roc_auc": roc_auc_score}


def subject(kind: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, 1, 24, 24, 24) scores and labels, about 2 % positive."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(13_824) < 0.02).astype(np.float64)
    logits = {
        "overlapping": rng.normal(-2 + 2 * labels, 1.5),
        "next-to-zero": rng.normal(-20 + 4 * labels, 3.0),
        "next-to-one": rng.normal(12 + 2 * labels, 1.5),
        "ties": np.round(rng.normal(-2 + 2 * labels, 1.5)),
        "saturated": 300 * rng.normal(-1 + labels, 1.0),
        "random": rng.normal(size=13_824),
    }[kind]
    scores = 1 / (1 + np.exp(-np.clip(logits, -700, 700)))
    return tuple(torch.tensor(v, dtype=torch.float32).view(1, 1, 24, 24, 24) for v in (scores, labels))


KINDS = ["overlapping", "next-to-zero", "next-to-one", "ties", "saturated", "random"]


@pytest.mark.parametrize("score", SKLEARN)
@pytest.mark.parametrize("kind", KINDS)
def test_value_of_a_subject_is_that_of_scikit_learn(score, kind):
    scores, labels = subject(kind, 0)
    value = VoxelRanking(score)(scores, labels)
    expected = SKLEARN[score](labels.flatten().numpy(), scores.flatten().double().numpy())
    np.testing.assert_allclose(value.item(), expected, rtol=1e-9)


@pytest.mark.parametrize("score", SKLEARN)
@pytest.mark.parametrize("kind", KINDS)
def test_pooled_value_is_within_1e_4_of_scikit_learn(score, kind):
    metric, everything = VoxelRanking(score, pooled=True), []
    for seed in range(4):
        everything.append(subject(kind, seed))
        metric(*everything[-1])
    scores, labels = (torch.cat(v).flatten().double().numpy() for v in zip(*everything, strict=True))
    np.testing.assert_allclose(metric.aggregate().item(), SKLEARN[score](labels, scores), atol=1e-4, rtol=0)


def test_too_few_bins_would_not_reach_1e_4():
    metric = VoxelRanking("average_precision", pooled=True, bins=64)
    scores, labels = subject("overlapping", 0)
    metric(scores, labels)
    expected = average_precision_score(labels.flatten().numpy(), scores.flatten().numpy())
    assert abs(metric.aggregate().item() - expected) > 1e-3


def test_bins_of_equal_width_would_tie_scores_next_to_zero():
    scores, labels = (v.flatten().numpy() for v in subject("next-to-zero", 0))
    tied = np.floor(scores * 65_536)
    assert abs(roc_auc_score(labels, tied) - roc_auc_score(labels, scores)) > 1e-2


def test_bins_keep_the_order_of_the_scores():
    scores = (
        torch.cat([torch.zeros(1), torch.logspace(-44, 0, 5000), torch.ones(1), torch.rand(5000)])
        .sort()
        .values
    )
    bins = score_bins(scores, 65_536)
    assert (bins.diff() >= 0).all()
    assert bins[0] == 0
    assert bins[-1] == 65_535


def test_pooled_value_is_not_the_mean_over_subjects():
    easy = torch.tensor([0.1, 0.2, 0.9]), torch.tensor([0.0, 0, 1])
    shifted = torch.tensor([0.95, 0.96, 0.99]), torch.tensor([0.0, 0, 1])
    metric = VoxelRanking("roc_auc", pooled=True)
    for scores, labels in (easy, shifted):
        metric(scores.view(1, 1, 3, 1, 1), labels.view(1, 1, 3, 1, 1))
    assert metric.get_buffer().tolist() == [[1.0], [1.0]]
    np.testing.assert_allclose(metric.aggregate().item(), 6 / 8, rtol=1e-12)


def test_reset_forgets_the_pooled_voxels():
    metric, (scores, labels) = VoxelRanking("roc_auc", pooled=True), subject("overlapping", 0)
    metric(1 - scores, labels)
    metric.reset()
    metric(scores, labels)
    assert metric.aggregate() > 0.7


@pytest.mark.parametrize("pooled", [False, True])
def test_ignored_labels_and_voxels_outside_the_mask_do_not_count(pooled):
    scores, labels = subject("overlapping", 0)
    expected = roc_auc_score(labels[..., 4:].flatten().numpy(), scores[..., 4:].flatten().numpy())
    mask, labels = torch.ones_like(labels), labels.clone()
    mask[..., 0], labels[..., 1], labels[..., 2:4] = 0, -1, torch.nan
    metric = VoxelRanking("roc_auc", pooled=pooled)
    metric(scores, labels, mask=mask)
    np.testing.assert_allclose(metric.aggregate().item(), expected, atol=1e-4 if pooled else 1e-9)


def test_a_subject_without_positives_is_nan_and_does_not_change_the_mean():
    metric, (scores, labels) = VoxelRanking(), subject("overlapping", 0)
    value = metric(scores, labels)
    metric(scores, torch.zeros_like(labels))
    assert metric.get_buffer().isnan().tolist() == [[False], [True]]
    torch.testing.assert_close(metric.aggregate(), value[0, 0])


def test_every_channel_has_its_value_and_background_can_be_left_out():
    scores, labels = subject("overlapping", 0)
    two = torch.cat([1 - scores, scores], dim=1), torch.cat([1 - labels, labels], dim=1)
    value = VoxelRanking(include_background=False)(*two)
    torch.testing.assert_close(value, VoxelRanking()(scores, labels))
    assert VoxelRanking(names=("background", "lesion"))(*two).shape == (1, 2)


def test_logits_are_refused():
    with pytest.raises(ValueError, match=r"scores lie in \[-3, 2\], expected probabilities"):
        VoxelRanking()(torch.tensor([-3.0, 2.0]).view(1, 1, 2, 1, 1), torch.ones(1, 1, 2, 1, 1))


def test_labels_of_other_channels_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(1, 2, 1, 1\) and labels \(2, 2, 1, 1\)"):
        VoxelRanking()(torch.ones(1, 1, 2, 1, 1), torch.ones(1, 2, 2, 1, 1))
