"""Fibre coherence: flips and permutations of b-vectors are told from the data alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmri_monai.check import AXIS_CHANGES, check_image, coherence_index, describe
from dmri_monai.check.coherence import Coherence
from dmri_monai.gradients import GradientTable
from dmri_monai.phantom import make_subject
from tests.check.fibres import positions, ring_scan, signal, table
from tests.conftest import STANDARD_AFFINES

OBLIQUE = STANDARD_AFFINES["oblique-right-iso2"]
CHANGES = {describe(c.long()): c for c in AXIS_CHANGES[1:]}


def mistaken(gradients: GradientTable, affine: torch.Tensor, change: torch.Tensor) -> GradientTable:
    """The table as read from a .bvec file whose rows went through `change`."""
    return GradientTable.from_fsl(gradients.bvals, gradients.to_fsl(affine) @ change.T, affine)


@pytest.fixture(scope="module")
def oblique_scan() -> tuple[torch.Tensor, GradientTable]:
    return ring_scan(OBLIQUE)


def test_there_are_24_different_axis_changes_up_to_sign():
    keys = {
        tuple((c * np.sign(c.flatten()[c.flatten().abs().argmax()])).flatten().tolist()) for c in AXIS_CHANGES
    }
    assert len(keys) == 24
    torch.testing.assert_close(AXIS_CHANGES[0], torch.eye(3, dtype=torch.float64))


def test_right_vectors_are_consistent_on_every_grid(standard_affine):
    image, gradients = ring_scan(standard_affine)
    result = check_image(image, gradients, standard_affine)
    assert result.coherence.verdict == "consistent"
    assert result.ok


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_axis_change_is_found_and_mended(oblique_scan, change):
    image, gradients = oblique_scan
    result = check_image(image, mistaken(gradients, OBLIQUE, change), OBLIQUE)
    assert result.coherence.verdict == "wrong"
    mended = torch.tensor(result.coherence.change, dtype=torch.float64) @ change
    torch.testing.assert_close(mended * mended[0, 0], torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "name", ["RAS-iso2", "LAS-2x2x2.5", "PLS-iso2", "oblique-left-2x2x2.5", "RAS-1.7x1.7x5"]
)
def test_a_forgotten_determinant_rule_is_called_a_flip_in_x(name):
    affine = STANDARD_AFFINES[name]
    image, gradients = ring_scan(affine)
    wrong = mistaken(gradients, affine, torch.diag(torch.tensor([-1.0, 1, 1], dtype=torch.float64)))
    findings = check_image(image, wrong, affine).findings
    assert len(findings) == 1
    assert findings[0].startswith("your b-vectors look flipped in x (")


def test_a_radial_field_is_not_taken_for_a_wrong_table():
    points = positions(OBLIQUE)
    radius = np.linalg.norm(points, axis=-1)
    gradients = table()
    image = signal(points / np.maximum(radius, 1e-9)[..., None], radius < 20, gradients)
    assert check_image(image, gradients, OBLIQUE).coherence.verdict != "wrong"


def test_a_scan_without_fibres_is_inconclusive():
    points = positions(OBLIQUE)
    gradients = table()
    image = signal(np.zeros_like(points), np.zeros(points.shape[:-1], bool), gradients)
    assert check_image(image, gradients, OBLIQUE).coherence.verdict == "inconclusive"


@pytest.mark.parametrize("verdict", ["wrong", "inconclusive", "consistent"])
def test_an_axis_change_is_described_only_where_the_table_is_wrong(verdict):
    rival = ((-1, 0, 0), (0, 1, 0), (0, 0, 1))
    expected = "flipped in x" if verdict == "wrong" else ""
    assert Coherence(verdict, 0.84, 0.87, rival, 4.2).description == expected


def test_index_of_three_voxels_in_a_row_is_the_sum_over_their_two_pairs():
    fa = torch.zeros(5, 3, 3)
    fa[1:4, 1, 1] = torch.tensor([0.4, 0.5, 0.6])
    v1 = torch.zeros(3, 5, 3, 3)
    v1[0] = 1
    index = coherence_index(v1, fa, torch.eye(3)).flatten(1).sum(1)
    along_x = AXIS_CHANGES[:, 0, 0] != 0
    torch.testing.assert_close(index[along_x], torch.full((8,), 0.9 + 1.1))
    torch.testing.assert_close(index[~along_x], torch.zeros(16))


def test_index_counts_steps_in_millimetres():
    fa = torch.full((2, 2, 1), 0.5)
    v1 = torch.tensor([1.0, 1.0, 0.0]).div(2**0.5).view(3, 1, 1, 1).expand(3, 2, 2, 1)
    square = coherence_index(v1, fa, torch.eye(3))[0].sum()
    stretched = coherence_index(v1, fa, torch.diag(torch.tensor([1.0, 5.0, 1.0])))[0].sum()
    torch.testing.assert_close(torch.stack([square, stretched]), torch.tensor([1.0, 0.0]))


def test_real_scan_of_a_few_voxels_is_not_called_wrong(shared_dir):
    from dmri_monai.check import check_scan

    assert check_scan(shared_dir / "data" / "mrtrix_dwi" / "dwi.nii.gz").coherence.verdict != "wrong"


@pytest.fixture(scope="module")
def whole_head():
    pytest.importorskip("nilearn", reason="the MNI152 template stands in nilearn's wheel")
    options = {"shape": (60, 72, 60), "spacing_mm": (3.0, 3.0, 3.0), "scheme": "clinical-32", "snr": 20.0}
    return make_subject((900, 1), anatomy="mni152", **options)


def test_right_vectors_of_a_whole_head_are_consistent(whole_head):
    result = check_image(whole_head.image.as_tensor(), whole_head.table, whole_head.affine)
    assert result.coherence.verdict == "consistent"


@pytest.mark.parametrize("name", ["flipped in x", "flipped in y", "flipped in z", "swapped between x and y"])
def test_wrong_axes_of_a_whole_head_are_named(whole_head, name):
    wrong = mistaken(whole_head.table, whole_head.affine, CHANGES[name])
    result = check_image(whole_head.image.as_tensor(), wrong, whole_head.affine)
    assert result.coherence.description == name


def test_fibres_that_fan_from_one_centre_are_not_accused():
    subject = make_subject((0, 1), shape=(48, 56, 48), spacing_mm=(3.0, 3.0, 3.0))
    result = check_image(subject.image.as_tensor(), subject.table, subject.affine)
    assert result.coherence.verdict != "wrong"
