"""Scans, masks and labels are read by one rule: whatever unit their headers use, they lie on one grid."""

from __future__ import annotations

from pathlib import Path

import monai.transforms as mt
import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from dmri_monai.io import write_dwi, write_nifti
from dmri_monai.transforms import CheckLabeld, IgnoreOutsided, LoadDWId, LoadNiftid
from tests.check.fibres import ring_scan
from tests.conftest import STANDARD_AFFINES

AFFINE = STANDARD_AFFINES["oblique-left-iso2"]
PER_MM = {"mm": 1.0, "micron": 1000.0, "meter": 0.001}


def in_unit(path: Path, unit: str) -> None:
    """Say the same affine in another unit."""
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[:3] *= PER_MM[unit]
    other = nibabel.Nifti1Image(np.asanyarray(image.dataobj), affine)
    other.header.set_xyzt_units(unit, "sec")
    other.to_filename(path)


@pytest.fixture
def item(tmp_path: Path) -> dict[str, str]:
    image, table = ring_scan(AFFINE)
    write_dwi(tmp_path / "dwi.nii.gz", MetaTensor(image, affine=AFFINE), table)
    halves = torch.zeros(image.shape[1:], dtype=torch.uint8)
    halves[image.shape[1] // 2 :] = 1
    for name in ("label", "mask"):
        write_nifti(tmp_path / f"{name}.nii.gz", halves, AFFINE)
    paths = {"image": "dwi.nii.gz", "label": "label.nii.gz", "mask": "mask.nii.gz"}
    return {key: str(tmp_path / name) for key, name in paths.items()}


PIPELINE = mt.Compose(
    [
        LoadDWId("image"),
        LoadNiftid(["label", "mask"]),
        CheckLabeld("label", n_classes=4),
        IgnoreOutsided("label", 255),
        mt.Spacingd(["image", "label"], pixdim=(3.0, 3.0, 3.0), mode=["bilinear", "nearest"]),
    ]
)


@pytest.mark.filterwarnings("ignore:the header gives voxels")
@pytest.mark.parametrize("unit", ["micron", "meter"])
@pytest.mark.parametrize(
    "files", [("image", "label", "mask"), ("label",), ("mask",), ("image",)], ids="-".join
)
def test_any_of_the_files_may_be_in_another_unit(item, unit, files):
    expected = PIPELINE(item)
    for key in files:
        in_unit(Path(item[key]), unit)
    found = PIPELINE(item)
    for key in ("image", "label"):
        torch.testing.assert_close(found[key].affine, expected[key].affine, rtol=0, atol=1e-4)
        torch.testing.assert_close(found[key].as_tensor(), expected[key].as_tensor(), rtol=1e-4, atol=1e-2)


def test_monais_loader_is_not_fooled_in_silence(item):
    """Who loads a label otherwise gets an error with both files, not a shifted label."""
    in_unit(Path(item["label"]), "micron")
    loaded = mt.LoadImaged("label", ensure_channel_first=True)(LoadDWId("image")(item))
    with pytest.raises(ValueError, match=r"beside the image.*label\.nii\.gz, of .*dwi\.nii\.gz"):
        CheckLabeld("label", n_classes=4)(loaded)


@pytest.mark.parametrize("channels", [1, 3], ids=["label", "peaks"])
def test_values_are_those_of_monais_loader(tmp_path, channels):
    path = tmp_path / "map.nii.gz"
    values = torch.rand((channels, 4, 5, 6))
    write_nifti(path, values if channels > 1 else values[0], AFFINE)
    ours, theirs = LoadNiftid("x")({"x": path}), mt.LoadImaged("x", ensure_channel_first=True)({"x": path})
    torch.testing.assert_close(ours["x"].as_tensor(), theirs["x"].as_tensor(), rtol=0, atol=0)
    torch.testing.assert_close(ours["x"].affine, theirs["x"].affine.double(), rtol=0, atol=1e-5)
