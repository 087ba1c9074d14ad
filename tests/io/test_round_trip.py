"""What is written is read back, by us and by DIPY, on every handedness, obliqueness and voxel size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.io.gradients import read_bvals_bvecs
from dipy.io.image import load_nifti
from dipy.reconst.dti import TensorModel
from monai.data import MetaTensor
from torch.testing import assert_close

from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_dwi, write_dwi
from tests.io.scans import bvals_and_bvecs, unit_vectors, voxels, write_scan

SUFFIXES = pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])


def tensor_signal(
    bvals: np.ndarray, bvecs_world: np.ndarray, n_voxels: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Tensors (V, 3, 3) in mm²/s, world frame, all different, and their noise-free signal (N, V)."""
    axes = np.linalg.qr(np.random.default_rng(3).normal(size=(n_voxels, 3, 3)))[0]
    tensors = axes @ np.diag([1.7e-3, 0.5e-3, 0.2e-3]) @ axes.transpose(0, 2, 1)
    exponent = np.einsum("n,ni,vij,nj->nv", bvals, bvecs_world, tensors, bvecs_world)
    return tensors, 1000 * np.exp(-exponent)


def dipy_table(stem: Path):
    bvals, bvecs = read_bvals_bvecs(f"{stem}.bval", f"{stem}.bvec")
    return gradient_table(bvals, bvecs=bvecs)


@SUFFIXES
def test_read_write_read_is_exact_on_every_grid(standard_affine, tmp_path, suffix):
    image, table = read_dwi(write_scan(tmp_path / f"first{suffix}", affine=standard_affine))
    write_dwi(tmp_path / f"second{suffix}", image, table)
    again, table_again = read_dwi(tmp_path / f"second{suffix}")
    assert_close(again.as_tensor(), image.as_tensor(), rtol=0, atol=0)
    assert_close(again.affine, image.affine, rtol=0, atol=1e-6)
    assert_close(table_again.bvals, table.bvals, rtol=0, atol=0)
    assert_close(table_again.bvecs, table.bvecs, rtol=0, atol=1e-9)


def test_a_grid_with_shear_survives_the_round_trip(standard_affine, tmp_path):
    sheared = standard_affine.clone()
    sheared[:3, 1] += 0.3 * sheared[:3, 0]
    image, table = read_dwi(write_scan(tmp_path / "first.nii", affine=sheared))
    write_dwi(tmp_path / "second.nii", image, table)
    again, table_again = read_dwi(tmp_path / "second.nii")
    assert_close(again.affine, image.affine, rtol=0, atol=1e-6)
    assert_close(table_again.bvecs, table.bvecs, rtol=0, atol=1e-6)


def test_dipy_fits_the_true_tensors_to_a_scan_we_wrote(standard_affine, tmp_path):
    bvals, bvecs_world = np.r_[0.0, np.full(30, 1000.0)], np.r_[np.zeros((1, 3)), unit_vectors(30)]
    tensors_world, signal = tensor_signal(bvals, bvecs_world)
    image = MetaTensor(torch.from_numpy(signal).float().reshape(31, 2, 2, 2), affine=standard_affine)
    write_dwi(
        tmp_path / "dwi.nii.gz", image, GradientTable(torch.from_numpy(bvals), torch.from_numpy(bvecs_world))
    )

    data, affine = load_nifti(str(tmp_path / "dwi.nii.gz"))
    table = dipy_table(tmp_path / "dwi")
    found = TensorModel(table).fit(data.astype(float)).quadratic_form.reshape(8, 3, 3)

    # DIPY fits in the frame of the file's vectors: image axes, x mirrored on a right-handed grid
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    axes = axes @ np.diag([-1.0 if np.linalg.det(axes) > 0 else 1.0, 1, 1])
    np.testing.assert_allclose(axes @ found @ axes.T, tensors_world, atol=2e-7)


def test_dipys_tensors_taken_for_world_tensors_would_be_wrong(tmp_path):
    """The control of the test above: without turning, an oblique grid is far off."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = turn * 2
    bvals, bvecs_world = np.r_[0.0, np.full(30, 1000.0)], np.r_[np.zeros((1, 3)), unit_vectors(30)]
    tensors_world, signal = tensor_signal(bvals, bvecs_world)
    image = MetaTensor(torch.from_numpy(signal).float().reshape(31, 2, 2, 2), affine=affine)
    write_dwi(
        tmp_path / "dwi.nii", image, GradientTable(torch.from_numpy(bvals), torch.from_numpy(bvecs_world))
    )
    table = dipy_table(tmp_path / "dwi")
    found = TensorModel(table).fit(load_nifti(str(tmp_path / "dwi.nii"))[0].astype(float)).quadratic_form
    assert np.abs(found.reshape(8, 3, 3) - tensors_world).max() > 1e-4


def test_fractional_bvals_keep_every_digit(tmp_path):
    image, table = read_dwi(write_scan(tmp_path / "first.nii"))
    odd = GradientTable(table.bvals + 0.123456789012345, table.bvecs)
    write_dwi(tmp_path / "second.nii", image, odd)
    assert_close(read_dwi(tmp_path / "second.nii")[1].bvals, odd.bvals, rtol=0, atol=0)


def test_the_image_is_contiguous_float32_volumes_first(tmp_path):
    image, _ = read_dwi(write_scan(tmp_path / "dwi.nii.gz"))
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    np.testing.assert_array_equal(image.numpy(), np.moveaxis(voxels(), -1, 0))


def test_the_table_belongs_to_the_volumes_in_file_order(tmp_path):
    _, table = read_dwi(write_scan(tmp_path / "dwi.nii.gz"))
    bvals, bvecs = bvals_and_bvecs()
    np.testing.assert_allclose(table.bvals, bvals)
    np.testing.assert_allclose(table.bvecs, bvecs * [-1, 1, 1], atol=1e-10)  # the scan is stored LAS
