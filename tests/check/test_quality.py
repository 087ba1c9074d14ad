"""Noise level and dropped slices."""

from __future__ import annotations

import json

import pytest
import torch

from dmri_monai.check import dropped_slices, estimate_snr
from dmri_monai.gradients import GradientTable
from tests.check.fibres import checked, ring_scan, table
from tests.conftest import STANDARD_AFFINES

AFFINE = STANDARD_AFFINES["oblique-left-iso2"]


@pytest.fixture(scope="module")
def scan() -> tuple[torch.Tensor, GradientTable]:
    return ring_scan(AFFINE, sigma=25.0)


@pytest.fixture(scope="module")
def mask(scan) -> torch.Tensor:
    return torch.ones(scan[0].shape[1:], dtype=torch.bool)


def test_snr_is_signal_over_sigma(scan, mask):
    assert estimate_snr(*scan, mask) == pytest.approx(1000 / 25, rel=0.03)


def test_drift_of_whole_volumes_does_not_count_as_noise(scan, mask):
    image, gradients = scan
    drifting = image * torch.linspace(1.0, 0.8, len(image)).view(-1, 1, 1, 1)
    assert estimate_snr(drifting, gradients, mask) == pytest.approx(40, rel=0.05)


def test_snr_is_unknown_with_a_single_b0(scan, mask):
    image, gradients = scan
    keep = torch.arange(2, len(image))
    assert estimate_snr(image[keep], gradients.select(keep), mask) is None


def test_clean_scan_has_no_dropped_slice(scan, mask):
    assert dropped_slices(*scan, mask, axis=2) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_dropped_slices_are_found_where_they_are_with_what_is_left(scan, mask, axis):
    image, gradients = scan[0].clone(), scan[1]
    image[5].select(axis, 7).mul_(0.2)
    image[20].select(axis, 12).mul_(0.7)
    image[1].select(axis, 3).mul_(0.5)  # a b0 volume: with three of them nothing can be said
    found = dropped_slices(image, gradients, mask, axis)
    assert [(d.volume, d.slice) for d in found] == [(5, 7), (20, 12)]
    assert [d.gain for d in found] == pytest.approx([0.2, 0.7], abs=0.03)


def test_a_volume_that_is_darker_as_a_whole_is_not_a_dropped_slice(scan, mask):
    image = scan[0].clone()
    image[9] *= 0.6
    assert dropped_slices(image, scan[1], mask, axis=2) == []


def test_slices_are_searched_along_the_acquisition_direction(scan):
    image = scan[0].clone()
    image[6, 4] *= 0.3
    along_x = AFFINE[:3, 0] / AFFINE[:3, 0].norm()
    assert [(d.volume, d.slice) for d in checked(image, scan[1], AFFINE, along_x).dropouts] == [(6, 4)]


def test_result_is_plain_json(scan):
    result = checked(*scan, AFFINE)
    content = json.loads(json.dumps(result.to_dict()))
    assert content["ok"] is True
    assert content["shells"] == [[1000.0, 30]]
    assert content["handedness"] == "left"


def test_missing_b0_and_coplanar_directions_are_findings(scan):
    image, gradients = scan[0][3:], table(n_b0=0)
    flat = gradients.bvecs * torch.tensor([1.0, 1.0, 0.0])
    planar = GradientTable(gradients.bvals, flat / flat.norm(dim=1, keepdim=True))
    codes = checked(image, planar, AFFINE).codes
    assert "no-b0" in codes
    assert "table-undetermined" in codes


def test_low_snr_is_a_finding():
    image, gradients = ring_scan(AFFINE, sigma=400.0)
    assert "low-snr" in checked(image, gradients, AFFINE).codes


def test_a_smooth_change_over_neighbouring_slices_is_not_a_dropped_slice(scan, mask):
    image = scan[0].clone()
    slices = torch.arange(image.shape[3])
    image[8] *= 1 - 0.5 * torch.exp(-0.5 * ((slices - 10) / 5.0).square())
    assert dropped_slices(image, scan[1], mask, axis=2) == []


def test_the_outermost_slices_are_not_judged(scan, mask):
    image = scan[0].clone()
    image[7, :, :, 0] *= 0.2
    assert dropped_slices(image, scan[1], mask, axis=2) == []
