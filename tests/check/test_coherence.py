"""Fibre coherence: flips and permutations of b-vectors are told from the data alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmri_monai.check.axis_changes import AXIS_CHANGES, change_code, describe, turn_deg
from dmri_monai.check.coherence import Coherence, continuation, lattice_steps
from dmri_monai.gradients import GradientTable
from dmri_monai.phantom import make_subject
from tests.check.fibres import checked, positions, ring_scan, signal, table
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
    result = checked(image, gradients, standard_affine)
    assert result.coherence.verdict == "consistent"
    assert result.ok


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_axis_change_is_found_and_mended(oblique_scan, change):
    image, gradients = oblique_scan
    result = checked(image, mistaken(gradients, OBLIQUE, change), OBLIQUE)
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
    findings = [f for f in checked(image, wrong, affine).findings if f.severity != "note"]
    assert [f.code for f in findings] == ["bvecs-flipped-x"]
    assert findings[0].message.startswith("your b-vectors look flipped in x (")


def test_a_radial_field_is_not_taken_for_a_wrong_table():
    points = positions(OBLIQUE)
    radius = np.linalg.norm(points, axis=-1)
    gradients = table()
    image = signal(points / np.maximum(radius, 1e-9)[..., None], radius < 20, gradients)
    assert checked(image, gradients, OBLIQUE).coherence.verdict != "wrong"


def test_a_scan_without_fibres_is_inconclusive():
    points = positions(OBLIQUE)
    gradients = table()
    image = signal(np.zeros_like(points), np.zeros(points.shape[:-1], bool), gradients)
    assert checked(image, gradients, OBLIQUE).coherence.verdict == "inconclusive"


@pytest.mark.parametrize("verdict", ["wrong", "inconclusive", "consistent"])
def test_an_axis_change_is_described_only_where_the_table_is_wrong(verdict):
    rival = ((-1, 0, 0), (0, 1, 0), (0, 0, 1))
    expected = "flipped in x" if verdict == "wrong" else ""
    assert Coherence(verdict, 0.84, 0.87, rival, 4.2).description == expected


def test_steps_along_two_bundles_score_and_steps_across_them_do_not():
    fa, v1 = torch.zeros(12, 12, 12), torch.zeros(3, 12, 12, 12)
    fa[:, 3, 3], fa[8, :, 8] = 0.5, 0.5
    v1[0, :, 3, 3], v1[1, 8, :, 8] = 1.0, 1.0
    score = continuation(v1, fa, torch.eye(3).double()).flatten(1).sum(1)
    swapped = CHANGES["swapped between x and y"]
    k = int((AXIS_CHANGES - swapped).abs().flatten(1).sum(1).argmin())
    assert score[0] > 0
    assert score[k] < 0


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (2.0, 2.0, 5.0), (1.0, 1.0, 5.0), (4.0, 1.5, 1.5)])
def test_directions_that_do_not_depend_on_place_favour_no_axis_change_on_any_voxels(spacing):
    generator = torch.Generator().manual_seed(0)
    v1 = torch.nn.functional.normalize(torch.randn(3, 24, 24, 24, generator=generator), dim=0)
    v1[2] *= 3  # most of them across the slices
    v1 = torch.nn.functional.normalize(v1, dim=0)
    score = continuation(v1, torch.full((24, 24, 24), 0.5), torch.diag(torch.tensor(spacing).double()))
    assert score.flatten(1).sum(1).abs().max() < 0.01 * 0.5 * 24**3


def test_steps_go_to_the_26_neighbours_of_a_cube():
    steps = lattice_steps(torch.eye(3).double() * 2)
    assert len(steps) == 13
    assert steps.abs().max() == 1


def test_steps_on_thick_slices_are_as_long_in_the_slice_as_across_it():
    offsets = torch.diag(torch.tensor([1.0, 1.0, 5.0]).double())
    length = (lattice_steps(offsets).double() @ offsets).norm(dim=1)
    assert length.min() >= 3.5
    assert length.max() <= 9.0


def test_every_axis_change_has_a_code_of_its_kind():
    codes = {change_code(c.long()) for c in AXIS_CHANGES[1:]}
    axes, pairs = ("x", "y", "z"), ("xy", "xz", "yz")
    assert codes == {
        *(f"bvecs-flipped-{a}" for a in axes), *(f"bvecs-swapped-{p}" for p in pairs), "bvecs-permuted"
    }  # fmt: skip


def test_turn_of_opposite_matrices_is_none():
    torch.testing.assert_close(turn_deg(-torch.eye(3), torch.eye(3)), 0.0)
    torch.testing.assert_close(turn_deg(torch.diag(torch.tensor([-1.0, 1, 1])), torch.eye(3)), 180.0)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["RAS", "LPS"])
def test_vectors_in_scanner_axes_are_named_and_mended(oblique_scan, sign):
    image, gradients = oblique_scan
    flip = torch.tensor([sign, sign, 1.0]).double()
    wrong = GradientTable.from_fsl(gradients.bvals, gradients.bvecs * flip, OBLIQUE)
    result = checked(image, wrong, OBLIQUE).coherence
    assert result.verdict == "wrong"
    assert result.code == "bvecs-frame"
    assert ("RAS" if sign > 0 else "LPS") in result.frame
    mended = wrong.to_fsl(OBLIQUE) @ torch.tensor(result.change).double().T
    torch.testing.assert_close(mended.abs(), gradients.to_fsl(OBLIQUE).abs(), atol=1e-6, rtol=0)


def test_real_scan_of_a_few_voxels_is_not_called_wrong(shared_dir):
    from dmri_monai.check import check_scan

    assert check_scan(shared_dir / "data" / "mrtrix_dwi" / "dwi.nii.gz").coherence is not None


@pytest.fixture(scope="module")
def whole_head():
    pytest.importorskip("nilearn", reason="the MNI152 template stands in nilearn's wheel")
    options = {"shape": (60, 72, 60), "spacing_mm": (3.0, 3.0, 3.0), "scheme": "clinical-32", "snr": 20.0}
    return make_subject((900, 1), anatomy="mni152", **options)


def test_right_vectors_of_a_whole_head_are_consistent(whole_head):
    result = checked(whole_head.image.as_tensor(), whole_head.table, whole_head.affine)
    assert result.coherence.verdict == "consistent"


@pytest.mark.parametrize("name", ["flipped in x", "flipped in y", "flipped in z", "swapped between x and y"])
def test_wrong_axes_of_a_whole_head_are_named(whole_head, name):
    wrong = mistaken(whole_head.table, whole_head.affine, CHANGES[name])
    result = checked(whole_head.image.as_tensor(), wrong, whole_head.affine)
    assert result.coherence.description == name


def test_fibres_that_fan_from_one_centre_are_not_accused():
    subject = make_subject((0, 1), shape=(48, 56, 48), spacing_mm=(3.0, 3.0, 3.0))
    result = checked(subject.image.as_tensor(), subject.table, subject.affine)
    assert result.coherence.verdict != "wrong"


@pytest.mark.parametrize(
    "spacing",
    [
        (2.0, 2.0, 5.0),
        pytest.param((1.5, 1.5, 4.0), marks=pytest.mark.slow),
        pytest.param((3.0, 2.0, 2.0), marks=pytest.mark.slow),
    ],
)
def test_thick_slices_of_a_whole_head_are_consistent_and_their_flip_is_named(spacing):
    pytest.importorskip("nilearn", reason="the MNI152 template stands in nilearn's wheel")
    shape = tuple(int(e / s) for e, s in zip((150, 180, 120), spacing, strict=True))
    subject = make_subject(
        (901, 1), anatomy="mni152", shape=shape, spacing_mm=spacing, scheme="clinical-32", snr=20.0
    )
    image, right = subject.image.as_tensor(), subject.table
    assert checked(image, right, subject.affine).coherence.verdict == "consistent"
    wrong = mistaken(right, subject.affine, CHANGES["flipped in y"])
    assert checked(image, wrong, subject.affine).codes == ("bvecs-flipped-y",)
