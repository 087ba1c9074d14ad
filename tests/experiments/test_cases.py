"""Cases: heads turned and mirrored as one body, standardised without losing that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.experiments.cases import Case, Scale, case_of, mirrored, padded, stacked, turned
from dmri_monai.gradients import GradientTable
from dmri_monai.so3 import representation_matrix
from dmri_monai.transforms.random_rotation import random_rotation
from tests.experiments.examples import CLEAR


def rotation_of(subject) -> torch.Tensor:
    return torch.tensor(subject.parameters["HeadTurn"], dtype=torch.float64)


def likeness(first: Case, second: Case, channels: slice) -> float:
    """Correlation of channels in both brains, boxes laid on one another's middles."""
    size = torch.tensor([first.mask.shape, second.mask.shape]).amax(0).tolist()
    a, b = (padded(case, size) for case in (first, second))
    inside = a.mask & b.mask
    return float(
        np.corrcoef(a.image[channels][:, inside].flatten(), b.image[channels][:, inside].flatten())[0, 1]
    )


@pytest.mark.parametrize("takes", ["harmonics", "invariants", "shells"])
def test_turned_case_is_that_of_a_head_simulated_turned(takes):
    upright, lying = (replace(CLEAR, turned=t).subject(0) for t in (False, True))
    rotation = rotation_of(lying)
    found, expected = turned(case_of(upright, takes, "lesion"), rotation), case_of(lying, takes, "lesion")
    back = turned(case_of(upright, takes, "lesion"), rotation.T)
    directions = slice(-14, None) if takes != "shells" else slice(17, 22)
    assert likeness(found, expected, directions) > 0.8
    assert likeness(back, expected, directions) < 0.5  # the control
    unturned = replace(found, image=torch.einsum(
        "dc,cxyz->dxyz", representation_matrix(found.irreps, rotation.T).float(), found.image))  # fmt: skip
    assert likeness(unturned, expected, directions) < 0.5  # voxels moved, directions left behind


def test_axes_turn_with_the_head():
    upright, lying = (replace(CLEAR, turned=t).subject(0) for t in (False, True))
    found = turned(case_of(upright, "harmonics", "orientation"), rotation_of(lying))
    expected = case_of(lying, "harmonics", "orientation")
    size = torch.tensor([found.mask.shape, expected.mask.shape]).amax(0).tolist()
    a, b = (padded(case, size).label for case in (found, expected))
    both = (a.norm(dim=0) > 0.6) & (b.norm(dim=0) > 0.6)
    cosine = (a[:, both] * b[:, both]).sum(0).abs() / (a[:, both].norm(dim=0) * b[:, both].norm(dim=0))
    assert float(cosine.median()) > 0.95
    assert float(cosine.new_tensor(0) + _unturned_cosine(a, b, both, rotation_of(lying))) < 0.9


def _unturned_cosine(a, b, both, rotation) -> torch.Tensor:
    a = torch.einsum("wv,wxyz->vxyz", rotation.float(), a)
    return (
        (a[:, both] * b[:, both]).sum(0).abs() / (a[:, both].norm(dim=0) * b[:, both].norm(dim=0))
    ).median()


@pytest.mark.parametrize("takes", ["harmonics", "samples"])
def test_mirrored_case_is_that_of_the_mirrored_scan(takes):
    subject = replace(CLEAR, size=16, spacing_mm=8.0).subject(0)
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    table = GradientTable(subject.table.bvals, subject.table.bvecs @ flip)
    scan = replace(
        subject,
        image=type(subject.image)(subject.image.as_tensor().flip(1), affine=subject.affine),
        table=table,
        brain_mask=subject.brain_mask.flip(0),
        lesion=subject.lesion.flip(0),
    )
    found, expected = mirrored(case_of(subject, takes, "lesion")), case_of(scan, takes, "lesion")
    torch.testing.assert_close(found.image, expected.image, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.label, expected.label)
    if takes == "samples":
        torch.testing.assert_close(found.bvecs, expected.bvecs)
    else:
        flipped = case_of(subject, takes, "lesion").image.flip(-3)
        assert (flipped - expected.image).abs().max() > 0.01  # the control: directions have signs


def test_standardised_channels_turn_as_before():
    cases = [
        case_of(replace(CLEAR, size=16, spacing_mm=8.0).subject(n), "harmonics", "lesion") for n in (0, 1)
    ]
    scale = Scale.of(cases)
    values = torch.cat([scale(case).image[:, case.mask] for case in cases], dim=1)
    torch.testing.assert_close(values[:2].mean(1), torch.zeros(2), atol=1e-4, rtol=0.0)
    for block in (slice(0, 1), slice(1, 2), slice(2, 7), slice(7, 16)):
        assert float(values[block].square().mean()) == pytest.approx(1.0, abs=1e-3)
    rotation = random_rotation(np.random.RandomState(0)).double()
    matrix = representation_matrix(cases[0].irreps, rotation).float()
    turn = lambda case: replace(case, image=torch.einsum("dc,cxyz->dxyz", matrix, case.image))  # noqa: E731
    torch.testing.assert_close(scale(turn(cases[0])).image, turn(scale(cases[0])).image, atol=1e-4, rtol=1e-4)


def test_stacked_cases_share_a_box_and_lose_nothing():
    cases = [
        case_of(replace(CLEAR, size=16, spacing_mm=8.0).subject(n), "harmonics", "tissue") for n in (0, 1)
    ]
    made = stacked(cases, 8)
    assert len({case.mask.shape for case in made}) == 1
    assert all(n % 8 == 0 for n in made[0].mask.shape)
    for before, after in zip(cases, made, strict=True):
        torch.testing.assert_close(before.image[:, before.mask], after.image[:, after.mask])
        torch.testing.assert_close(before.label[:, before.mask], after.label[:, after.mask])
