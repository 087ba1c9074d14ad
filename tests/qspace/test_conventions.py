from __future__ import annotations

import numpy as np
import pytest
import torch
from dipy.core.sphere import Sphere
from dipy.reconst.shm import sh_to_sf

from dmri_monai.qspace.conventions import from_basis, order_of, to_basis
from dmri_monai.so3 import sh_basis

FOUR = [(b, legacy) for b in ("descoteaux07", "tournier07") for legacy in (True, False)]


@pytest.mark.parametrize(("basis", "legacy"), FOUR, ids=str)
@pytest.mark.parametrize("l_max", [0, 4, 8])
def test_converted_coefficients_are_the_same_function_as_in_dipy(basis, legacy, l_max):
    rng = np.random.default_rng(1)
    points = rng.normal(size=(40, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    theirs = torch.tensor(rng.normal(size=(l_max + 1) * (l_max + 2) // 2))
    expected = sh_to_sf(
        theirs.numpy(), Sphere(xyz=points), sh_order_max=l_max, basis_type=basis, legacy=legacy
    )
    ours = from_basis(theirs, basis, legacy=legacy)
    np.testing.assert_allclose((sh_basis(torch.tensor(points), l_max) @ ours).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("basis", "legacy"), FOUR, ids=str)
def test_there_and_back_is_the_identity(basis, legacy):
    ours = torch.randn(2, 15, 3, dtype=torch.float64)
    there = to_basis(ours, basis, legacy=legacy, dim=1)
    torch.testing.assert_close(from_basis(there, basis, legacy=legacy, dim=1), ours)


def test_the_four_bases_differ():
    ours = torch.randn(15, dtype=torch.float64)
    results = [to_basis(ours, basis, legacy=legacy) for basis, legacy in FOUR]
    for i in range(4):
        for j in range(i):
            assert (results[i] - results[j]).norm() > 1e-3


def test_a_wrong_number_of_coefficients_is_an_error():
    with pytest.raises(ValueError, match="16 is not a number of even harmonics"):
        order_of(16)
