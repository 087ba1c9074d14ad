from __future__ import annotations

import os

import dipy.data
import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from e3nn import o3

from dmri_monai.io import read_dwi
from dmri_monai.qspace.tensor import (
    fit_tensor,
    rotate_tensor,
    tensor_matrix,
    tensor_metrics,
    tensor_to_voxel,
    tensor_to_world,
)
from tests.transforms.fields import axial_degrees, directions

FILES = os.path.join(os.path.dirname(dipy.data.__file__), "files")
SCANS = {"small_64D": "small_64D.nii", "small_101D": "small_101D.nii.gz"}


def real_scan(name: str):
    image, table = read_dwi(os.path.join(FILES, SCANS[name]))
    return image.as_tensor()[None], table.bvals[None], table.in_voxel_frame(image.affine)[None]


@pytest.mark.parametrize("name", SCANS)
def test_metrics_of_real_scans_are_those_of_dipy(name):
    image, bvals, bvecs = real_scan(name)
    ours = tensor_metrics(fit_tensor(image, bvals, bvecs))
    table = gradient_table(bvals[0].numpy(), bvecs=bvecs[0].numpy(), b0_threshold=50)
    theirs = TensorModel(table, fit_method="WLS").fit(np.moveaxis(image[0].double().numpy(), 0, -1))
    np.testing.assert_allclose(ours.fa[0, 0], theirs.fa, atol=1e-3)
    np.testing.assert_allclose(ours.md[0, 0], theirs.md, atol=1e-6)
    np.testing.assert_allclose(ours.ad[0, 0], theirs.ad, atol=1e-6)
    np.testing.assert_allclose(ours.rd[0, 0], theirs.rd, atol=1e-6)
    clear = theirs.fa > 0.2
    angles = axial_degrees(np.moveaxis(ours.v1[0].numpy(), 0, -1), theirs.evecs[..., 0])
    assert clear.sum() > 50
    assert angles[clear].max() <= 0.5


def random_tensors(n: int = 200) -> torch.Tensor:
    a = torch.randn(n, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = (a @ a.mT) * 1e-3
    i, j = (0, 1, 2, 0, 0, 1), (0, 1, 2, 1, 2, 2)
    return matrix[:, i, j].T.reshape(1, 6, n, 1, 1)


def test_noise_free_tensors_are_recovered():
    tensor = random_tensors(50) * 0.3
    bvecs = torch.tensor(np.r_[np.zeros((1, 3)), directions(12)])
    bvals = torch.tensor(np.r_[0.0, np.full(12, 1000.0)])
    matrix = tensor_matrix(tensor)
    exponent = torch.einsum("ni,bxyzij,nj->bnxyz", bvecs, matrix, bvecs) * bvals.view(1, -1, 1, 1, 1)
    fitted = fit_tensor(100 * torch.exp(-exponent), bvals[None], bvecs[None], min_signal=1e-12)
    torch.testing.assert_close(fitted.double(), tensor, atol=2e-6, rtol=1e-3)


def test_closed_form_eigenvalues_and_vectors_are_those_of_lapack():
    tensor = random_tensors()
    metrics = tensor_metrics(tensor)
    values, vectors = torch.linalg.eigh(tensor_matrix(tensor)[0, :, 0, 0])
    torch.testing.assert_close(metrics.ad[0, 0, :, 0, 0], values[:, 2])
    torch.testing.assert_close(metrics.rd[0, 0, :, 0, 0], values[:, :2].mean(1))
    angles = axial_degrees(metrics.v1[0, :, :, 0, 0].T.numpy(), vectors[..., 2].numpy())
    assert angles.max() < 1e-3


def test_isotropic_and_zero_tensors_give_finite_metrics():
    tensor = torch.zeros(1, 6, 2, 1, 1)
    tensor[0, :3, 0] = 1e-3
    metrics = tensor_metrics(tensor)
    for value in metrics:
        assert value.isfinite().all()
    torch.testing.assert_close(metrics.fa[0, 0, :, 0, 0], torch.zeros(2), atol=1e-4, rtol=0)
    assert metrics.v1[..., 1, 0, 0].norm() == 0


def test_world_tensor_of_a_mirrored_grid_is_the_turned_voxel_tensor():
    rotation = o3.rand_matrix(dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = rotation @ torch.diag(torch.tensor([-2.0, 2.0, 2.5], dtype=torch.float64))
    tensor = random_tensors(5)
    q = rotation @ torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    expected = q @ tensor_matrix(tensor) @ q.T
    torch.testing.assert_close(tensor_matrix(tensor_to_world(tensor, affine)), expected)
    torch.testing.assert_close(tensor_to_voxel(tensor_to_world(tensor, affine), affine), tensor)


def test_items_are_turned_by_their_own_rotation():
    rotations = o3.rand_matrix(2).double()
    tensor = random_tensors(4).expand(2, -1, -1, -1, -1)
    turned = rotate_tensor(tensor, rotations)
    for b in range(2):
        torch.testing.assert_close(turned[b : b + 1], rotate_tensor(tensor[:1], rotations[b]))


def test_padded_rows_and_voxels_outside_the_brain_do_not_count():
    image, bvals, bvecs = real_scan("small_64D")
    expected = fit_tensor(image, bvals, bvecs)
    rows = torch.nn.functional.pad(torch.ones_like(bvals, dtype=torch.bool), (0, 3))
    padded = torch.cat([image, torch.full((1, 3, *image.shape[2:]), torch.nan)], dim=1)
    bvals, bvecs = (torch.cat([t, t.new_zeros(1, 3, *t.shape[2:])], 1) for t in (bvals, bvecs))
    brain = torch.rand(1, 1, *image.shape[2:]) > 0.5
    fitted = fit_tensor(padded, bvals, bvecs, mask=rows, brain=brain)
    torch.testing.assert_close(fitted, expected * brain, atol=1e-8, rtol=1e-4)


def test_too_few_directions_are_an_error():
    bvecs = torch.tensor(np.r_[np.zeros((1, 3)), directions(5)])
    with pytest.raises(ValueError, match="6 measurements cannot determine a tensor"):
        fit_tensor(torch.ones(1, 6, 2, 2, 2), torch.tensor([[0.0] + [1000.0] * 5]), bvecs[None])
