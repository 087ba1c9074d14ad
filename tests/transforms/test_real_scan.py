"""World-frame directions of a real oblique scan against MRtrix3's own tensors."""

from __future__ import annotations

from pathlib import Path

import monai.transforms as mt
import numpy as np
import pytest
import torch

from dmri_monai.gradients import GradientTable, grid_rotation
from dmri_monai.io import read_nifti
from dmri_monai.transforms import LoadDWId, RandRotateMMd, SphericalHarmonicsd, TensorMetricsd
from tests.transforms.fields import axial_degrees

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "mrtrix_dwi"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason=f"the real scan is not there: {FOLDER}")


def mrtrix_v1() -> tuple[np.ndarray, np.ndarray]:
    """V1 (X, Y, Z, 3) in the world frame and the voxels of the mask with FA > 0.3."""
    xx, yy, zz, xy, xz, yz = read_nifti(FOLDER / "tensor_world.nii.gz").as_tensor().double().numpy()
    matrix = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=-1).reshape(*xx.shape, 3, 3)
    values, vectors = np.linalg.eigh(np.nan_to_num(matrix))
    spread = values - values.mean(-1, keepdims=True)
    fa = np.sqrt(1.5 * (spread**2).sum(-1) / np.maximum((values**2).sum(-1), 1e-30))
    mask = read_nifti(FOLDER / "mask.nii.gz").as_tensor()[0].numpy() > 0
    return vectors[..., 2], mask & (fa > 0.3)


def our_v1(item: dict) -> np.ndarray:
    return np.moveaxis(TensorMetricsd(metrics=("v1",))(item)["v1"].as_tensor().numpy(), 0, -1)


def loaded() -> dict:
    return LoadDWId()({"image": FOLDER / "dwi.nii.gz"})


def test_principal_directions_agree_with_mrtrix():
    theirs, clear = mrtrix_v1()
    assert np.median(axial_degrees(our_v1(loaded()), theirs)[clear]) < 1.0


def test_a_reorientation_of_the_grid_leaves_world_directions_alone():
    theirs, clear = mrtrix_v1()
    item = mt.Orientationd("image", "SPL", labels=None)(loaded())
    v1 = TensorMetricsd(metrics=("v1",))(item)["v1"]
    back = mt.Orientation("RAS", labels=None)(v1).as_tensor().numpy()
    reference = read_nifti(FOLDER / "tensor_world.nii.gz")
    reference = type(reference)(torch.from_numpy(np.moveaxis(theirs, -1, 0).copy()), affine=reference.affine)
    expected = mt.Orientation("RAS", labels=None)(reference).as_tensor().numpy()
    mask = type(reference)(torch.from_numpy(clear[None].astype(np.float32)), affine=reference.affine)
    inside = mt.Orientation("RAS", labels=None)(mask).as_tensor()[0].numpy() > 0
    error = axial_degrees(np.moveaxis(back, 0, -1), np.moveaxis(expected, 0, -1))
    assert np.median(error[inside]) < 1.0


def test_the_wrong_sign_of_x_is_far_off():
    theirs, clear = mrtrix_v1()
    item = loaded()
    affine = item["image"].affine
    table = GradientTable(item["bvals"], item["bvecs"])
    mirrored = table.in_voxel_frame(affine) * torch.tensor([-1.0, 1.0, 1.0]).double()
    item["bvecs"] = (mirrored @ grid_rotation(affine).T).float()
    assert np.median(axial_degrees(our_v1(item), theirs)[clear]) > 30


def test_the_whole_chain_runs_on_a_real_scan():
    chain = mt.Compose(
        [
            RandRotateMMd("image", prob=1.0, max_degrees=10),
            mt.RandFlipd("image", prob=1.0, spatial_axis=1),
            SphericalHarmonicsd(shells=[3000], l_max=4),
        ],
        lazy=True,
    )
    image = chain(loaded())["image"]
    assert image.shape == (16, 6, 8, 9)
    assert image.isfinite().all()
    assert float(image.as_tensor()[2:7].abs().max()) > 0.05
