"""Scans without signal are named before anything is learnt from them or predicted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmri_monai.io.no_signal import require_signal
from dmri_monai.scan import Scan
from dmri_monai.transforms import LoadDWId
from tests.io.scans import save_image, voxels, write_scan

BVALS = torch.tensor([0.0, 1000, 1000, 1000])


def signal() -> torch.Tensor:
    return torch.rand(4, 5, 5, 5, generator=torch.Generator().manual_seed(0)) * 100 + 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(torch.zeros_like, "every voxel of every volume is 0", id="zero"),
        pytest.param(lambda x: torch.full_like(x, 7.0), "every voxel of every volume is 7", id="constant"),
        pytest.param(
            lambda x: torch.arange(4.0)[:, None, None, None].expand_as(x),
            "every volume is constant",
            id="volumes",
        ),
        pytest.param(lambda x: -x, "100% of the voxels at the lowest b-value are negative", id="negated"),
        pytest.param(
            lambda x: x * (BVALS > 0)[:, None, None, None], "in the volumes of the lowest b", id="no-b0"
        ),
    ],
)
def test_what_holds_no_signal_is_named_with_the_file(change, match):
    with pytest.raises(ValueError, match=f"no signal.*{match}.*scan.nii"):
        require_signal(change(signal()), BVALS, "scan.nii")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x, id="plain"),
        pytest.param(lambda x: torch.where(x < 20, -x / 100, x), id="interpolated"),
        pytest.param(lambda x: x * (torch.arange(5) > 2), id="mostly-air"),
    ],
)
def test_a_scan_with_signal_passes(change):
    require_signal(change(signal()), BVALS)


def test_reading_for_training_refuses_it_and_reading_for_a_check_does_not(tmp_path):
    path = write_scan(tmp_path / "dwi.nii.gz")
    save_image(path, np.zeros_like(voxels()))
    with pytest.raises(ValueError, match=rf"no signal: every voxel of every volume is 0: {path}"):
        LoadDWId("image")({"image": str(path)})
    scan = Scan.read(path)
    with pytest.raises(ValueError, match=rf"no signal.*{path}"):
        scan.require_signal()
