"""The unweighted volumes: their mean, and where the head is."""

from __future__ import annotations

import pytest
import torch

from dmri_monai.qspace.b0 import head_mask, mean_b0

RAMP = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 2, 2)


def test_mean_b0_is_the_mean_of_the_b0_volumes_alone():
    bvals = torch.tensor([0.0, 1000.0, 5.0, 1000.0])
    torch.testing.assert_close(mean_b0(RAMP, bvals), torch.ones(2, 2, 2))


def test_padding_is_not_averaged():
    valid = torch.tensor([True, True, False, False])
    torch.testing.assert_close(mean_b0(RAMP, torch.zeros(4), valid=valid), torch.full((2, 2, 2), 0.5))


def test_a_scan_without_b0_is_refused_with_its_smallest_b():
    with pytest.raises(ValueError, match="no b0 volume: lowest b is 700, above b0_threshold 50"):
        mean_b0(RAMP, torch.tensor([1000.0, 700.0, 1000.0, 700.0]))


def test_on_request_the_lowest_shell_stands_in_for_a_missing_b0():
    bvals = torch.tensor([1000.0, 700.0, 1000.0, 710.0])
    found = mean_b0(RAMP, bvals, without_b0="lowest shell")
    torch.testing.assert_close(found, torch.full((2, 2, 2), 2.0))


def test_the_lowest_shell_is_looked_for_among_the_valid_volumes():
    bvals, valid = torch.tensor([0.0, 1000.0, 2000.0, 1010.0]), torch.tensor([False, True, True, True])
    found = mean_b0(RAMP, bvals, valid=valid, without_b0="lowest shell")
    torch.testing.assert_close(found, torch.full((2, 2, 2), 2.0))


def test_an_existing_b0_is_used_whatever_is_asked_for_a_missing_one():
    bvals = torch.tensor([0.0, 300.0, 300.0, 300.0])
    torch.testing.assert_close(mean_b0(RAMP, bvals, without_b0="lowest shell"), torch.zeros(2, 2, 2))


def test_head_mask_leaves_out_air_and_survives_a_few_hot_voxels():
    b0 = torch.full((10, 10, 10), 20.0)
    b0[2:8, 2:8, 2:8] = 500.0
    b0[0, 0, :5] = 1e6
    torch.testing.assert_close(head_mask(b0), b0 > 100)


def test_head_mask_of_an_empty_image_is_empty():
    assert not head_mask(torch.zeros(3, 3, 3)).any()
