"""Real scans in four orientations, and MRtrix3's own tensors as the independent judge of frames."""

from __future__ import annotations

from pathlib import Path

import dipy
import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.io.gradients import read_bvals_bvecs
from dipy.reconst.dti import TensorModel

from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_dwi, read_nifti, write_dwi

DIPY_FILES = Path(dipy.__file__).parent / "data" / "files"
DIPY_SCANS = {
    "PLS": ("small_64D.nii", (65, 10, 10, 10), 1, [994]),
    "LAS": ("small_101D.nii.gz", (102, 6, 10, 10), 1, None),
    "RAS": ("small_25.nii.gz", (26, 10, 8, 2), 1, [2000]),
}


def fit(image: torch.Tensor, bvals: np.ndarray, bvecs: np.ndarray):
    data = np.moveaxis(np.asarray(image, dtype=np.float64), 0, -1)
    return TensorModel(gradient_table(np.asarray(bvals), bvecs=np.asarray(bvecs), b0_threshold=50)).fit(data)


def axis_angle(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Angle in degrees between axes (..., 3), whatever their sign and length."""
    norms = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    return np.degrees(np.arccos(np.clip(np.abs((one * other).sum(-1)) / norms, 0, 1)))


@pytest.fixture(params=DIPY_SCANS.values(), ids=DIPY_SCANS.keys())
def dipy_scan(request):
    name, shape, n_b0, shells = request.param
    return DIPY_FILES / name, shape, n_b0, shells


@pytest.fixture(scope="module")
def mrtrix(shared_dir):
    """Scan, its table, MRtrix's principal directions in the scanner frame, and where they are well defined."""
    folder = shared_dir / "data" / "mrtrix_dwi"
    image, table = read_dwi(folder / "dwi.nii.gz")
    xx, yy, zz, xy, xz, yz = read_nifti(folder / "tensor_world.nii.gz").numpy().astype(np.float64)
    tensor = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], -1).reshape(*xx.shape, 3, 3)
    values, vectors = np.linalg.eigh(tensor)
    mean = values.mean(-1, keepdims=True)
    fa = np.sqrt(1.5 * ((values - mean) ** 2).sum(-1) / np.maximum((values**2).sum(-1), 1e-30))
    inside = (read_nifti(folder / "mask.nii.gz").numpy()[0] > 0) & (fa > 0.3)
    return image, table, vectors[..., -1], inside


def median_error(mrtrix, bvecs) -> float:
    image, table, reference, inside = mrtrix
    found = fit(image, table.bvals, bvecs).evecs[..., 0]
    return float(np.median(axis_angle(found, reference)[inside]))


def test_bundled_scans_of_three_orientations_are_read_whole(dipy_scan):
    path, shape, n_b0, shells = dipy_scan
    image, table = read_dwi(path)
    assert image.shape == shape
    assert int(table.b0_mask.sum()) == n_b0
    norms = table.bvecs.norm(dim=1)
    torch.testing.assert_close(norms, (~table.b0_mask).double(), rtol=0, atol=1e-12)
    if shells:
        assert [round(s.bval) for s in table.shells()] == shells


def test_bundled_scans_hold_the_vectors_dipy_reads(dipy_scan):
    path, *_ = dipy_scan
    stem = path.name.split(".")[0]
    bvals, bvecs = read_bvals_bvecs(str(path.with_name(f"{stem}.bval")), str(path.with_name(f"{stem}.bvec")))
    image, table = read_dwi(path)
    np.testing.assert_allclose(table.bvals, bvals)
    weighted = bvals > 50
    expected = bvecs[weighted] / np.linalg.norm(bvecs[weighted], axis=1, keepdims=True)
    np.testing.assert_allclose(table.to_fsl(image.affine)[weighted], expected, atol=1e-12)


def test_world_frame_tensors_agree_with_mrtrix(mrtrix):
    assert median_error(mrtrix, mrtrix[1].bvecs) < 1.0


def test_voxel_frame_tensors_turned_into_the_world_agree_with_mrtrix(mrtrix):
    image, table, reference, inside = mrtrix
    found = fit(image, table.bvals, table.in_voxel_frame(image.affine)).evecs[..., 0]
    matrix = np.asarray(image.affine)[:3, :3]
    world = found @ (matrix / np.linalg.norm(matrix, axis=0)).T
    assert np.median(axis_angle(world, reference)[inside]) < 1.0


def test_taking_fsl_vectors_for_world_vectors_would_be_far_off(mrtrix):
    assert median_error(mrtrix, mrtrix[1].to_fsl(mrtrix[0].affine)) > 30


def test_the_wrong_sign_of_x_would_be_far_off(mrtrix):
    image, table, *_ = mrtrix
    fsl = table.to_fsl(image.affine)
    fsl[:, 0] *= -1
    wrong = GradientTable.from_fsl(table.bvals, fsl, image.affine)
    assert median_error(mrtrix, wrong.bvecs) > 30


def test_a_written_copy_of_a_real_scan_fits_the_same_world_tensors(mrtrix, tmp_path):
    image, table, *_ = mrtrix
    write_dwi(tmp_path / "copy.nii.gz", image, table)
    again, table_again = read_dwi(tmp_path / "copy.nii.gz")
    expected = fit(image, table.bvals, table.bvecs).quadratic_form
    np.testing.assert_allclose(
        fit(again, table_again.bvals, table_again.bvecs).quadratic_form, expected, atol=1e-9
    )
