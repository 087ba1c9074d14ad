"""`fix` mends what the check is sure of, keeps every other number, and else writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from dmri_monai.check import check_scan, fix_scan
from dmri_monai.gradients import GradientTable
from tests.check.fibres import ring_scan
from tests.conftest import STANDARD_AFFINES

AFFINE = STANDARD_AFFINES["oblique-right-iso2"]
SLOPE, INTERCEPT = 0.5, -3.0


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, GradientTable]:
    """Stored whole numbers (X, Y, Z, N), and the right table."""
    image, table = ring_scan(AFFINE)
    stored = np.rint((image.numpy() - INTERCEPT) / SLOPE).astype(np.int16)
    return np.moveaxis(stored, 0, -1), table


def write(folder: Path, stored: np.ndarray, bvals: torch.Tensor, fsl: torch.Tensor) -> Path:
    folder.mkdir(parents=True)
    header = nibabel.Nifti1Header()
    header.set_data_dtype(stored.dtype)
    image = nibabel.Nifti1Image(stored, AFFINE.numpy(), header)
    image.header.set_slope_inter(SLOPE, INTERCEPT)
    image.to_filename(folder / "scan.nii.gz")
    np.savetxt(folder / "scan.bval", bvals.numpy()[None], fmt="%g")
    np.savetxt(folder / "scan.bvec", fsl.numpy().T, fmt="%.8f")
    (folder / "scan.json").write_text('{"EchoTime": 0.08}', encoding="utf-8")
    return folder / "scan.nii.gz"


def trace(stored: np.ndarray) -> np.ndarray:
    return np.exp(np.log(stored[..., 3:].astype(float).clip(1)).mean(-1, keepdims=True)).astype(np.int16)


def adc(stored: np.ndarray) -> np.ndarray:
    b0 = stored[..., :3].mean(-1, keepdims=True).clip(1)
    return (1000 * np.log(b0 / trace(stored)).clip(0)).astype(np.int16)


def with_entry(table: GradientTable, bval: float) -> tuple[torch.Tensor, torch.Tensor]:
    """b-values and FSL vectors with one entry more, without direction."""
    fsl = table.to_fsl(AFFINE)
    return torch.cat([table.bvals, table.bvals.new_tensor([bval])]), torch.cat([fsl, fsl.new_zeros(1, 3)])


def assert_is_the_right_scan(folder: Path, stored: np.ndarray, table: GradientTable) -> None:
    image = nibabel.load(folder / "scan_dwi.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert (image.dataobj.slope, image.dataobj.inter) == (SLOPE, INTERCEPT)
    np.testing.assert_array_equal(np.asarray(image.dataobj.get_unscaled()), stored)
    np.testing.assert_allclose(image.affine, AFFINE.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.loadtxt(folder / "scan_dwi.bval"), table.bvals.numpy())
    fsl = np.loadtxt(folder / "scan_dwi.bvec").T
    cosine = np.abs((fsl * table.to_fsl(AFFINE).numpy()).sum(1))
    np.testing.assert_allclose(cosine, (~table.b0_mask).numpy().astype(float), atol=1e-6)
    assert check_scan(folder / "scan_dwi.nii.gz").ok


@pytest.mark.parametrize(
    "change",
    [
        [[-1, 0, 0], [0, 1, 0], [0, 0, 1]],
        [[0, 0, 1], [0, 1, 0], [1, 0, 0]],
        [[0, -1, 0], [0, 0, 1], [1, 0, 0]],
    ],
    ids=["flip", "swap", "cycle"],
)
def test_wrong_axes_are_mended_and_nothing_else_changes(tmp_path, scan, change):
    stored, table = scan
    wrong = table.to_fsl(AFFINE) @ torch.tensor(change).double().T
    mended = fix_scan(write(tmp_path / "in", stored, table.bvals, wrong), tmp_path / "out")
    assert_is_the_right_scan(tmp_path / "out", stored, table)
    assert len(mended.changes) == 1
    assert mended.check.coherence.verdict == "consistent"
    sidecar = json.loads((tmp_path / "out" / "scan_dwi.json").read_text(encoding="utf-8"))
    assert sidecar["EchoTime"] == 0.08
    assert sidecar["Mending"]["Changes"] == list(mended.changes)
    assert sidecar["Mending"]["Source"] == "scan.nii.gz"


def test_vectors_in_scanner_axes_are_mended(tmp_path, scan):
    stored, table = scan
    fix_scan(write(tmp_path / "in", stored, table.bvals, table.bvecs), tmp_path / "out")
    assert_is_the_right_scan(tmp_path / "out", stored, table)


@pytest.mark.parametrize("derived", [trace, adc], ids=["trace", "adc"])
@pytest.mark.parametrize("entry", [None, 0.0, 1000.0], ids=["no-entry", "as-b0", "no-direction"])
def test_a_trace_or_adc_volume_is_left_out(tmp_path, scan, derived, entry):
    stored, table = scan
    longer = np.concatenate([stored, derived(stored)], axis=-1)
    bvals, fsl = (table.bvals, table.to_fsl(AFFINE)) if entry is None else with_entry(table, entry)
    mended = fix_scan(write(tmp_path / "in", longer, bvals, fsl), tmp_path / "out")
    assert_is_the_right_scan(tmp_path / "out", stored, table)
    assert mended.changes[0].startswith("volume 33 left out")


def test_trace_and_adc_behind_the_table_and_a_flip_are_mended_together(tmp_path, scan):
    stored, table = scan
    longer = np.concatenate([stored, trace(stored), adc(stored)], axis=-1)
    wrong = table.to_fsl(AFFINE) * torch.tensor([1.0, -1.0, 1.0])
    mended = fix_scan(write(tmp_path / "in", longer, table.bvals, wrong), tmp_path / "out")
    assert_is_the_right_scan(tmp_path / "out", stored, table)
    assert len(mended.changes) == 3


def test_an_empty_volume_is_left_out(tmp_path, scan):
    stored, table = scan
    spoilt = stored.copy()
    spoilt[..., 10] = 0
    fix_scan(write(tmp_path / "in", spoilt, table.bvals, table.to_fsl(AFFINE)), tmp_path / "out")
    keep = [i for i in range(33) if i != 10]
    assert_is_the_right_scan(tmp_path / "out", stored[..., keep], table.select(torch.tensor(keep)))


def with_gaps(stored: np.ndarray, first: int) -> np.ndarray:
    """As float32, NaN and infinite on the first slices of all volumes from `first` on."""
    spoilt = stored.astype(np.float32)
    spoilt[:2, ..., first:], spoilt[2, ..., first:] = np.nan, np.inf
    return spoilt


def test_voxels_that_no_volume_measured_become_0(tmp_path, scan):
    stored, table = scan
    spoilt = with_gaps(stored, 0)
    path = write(tmp_path / "in", spoilt, table.bvals, table.to_fsl(AFFINE))
    count, all_of_them = 3 * stored[0, ..., 0].size, stored[..., 0].size
    with pytest.raises(
        ValueError, match=rf"{count} of {all_of_them} voxels are NaN .*`dmri-monai fix` .*scan.nii.gz"
    ):
        check_scan(path)
    mended = fix_scan(path, tmp_path / "out")
    assert mended.changes == (f"{count} voxels set to 0: not finite in any volume",)
    image = nibabel.load(tmp_path / "out" / "scan_dwi.nii.gz")
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(image.dataobj)[:3], 0)
    np.testing.assert_array_equal(np.asarray(image.dataobj.get_unscaled())[3:], spoilt[3:])
    assert check_scan(tmp_path / "out" / "scan_dwi.nii.gz").ok


def test_voxels_that_one_volume_lacks_are_refused(tmp_path, scan):
    stored, table = scan
    path = write(tmp_path / "in", with_gaps(stored, 32), table.bvals, table.to_fsl(AFFINE))
    with pytest.raises(ValueError, match=r"volume 32 has \d+ voxels that are NaN or infinite, expected 0"):
        check_scan(path)
    with pytest.raises(ValueError, match="not sure how to mend this: .* not finite, in volume 32"):
        fix_scan(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_voxel_that_one_volume_lacks_besides_those_outside_of_the_mask_is_named(tmp_path, scan):
    stored, table = scan
    spoilt = with_gaps(stored, 0)
    spoilt[9, 9, 8:10, 5] = np.nan
    path = write(tmp_path / "in", spoilt, table.bvals, table.to_fsl(AFFINE))
    with pytest.raises(ValueError, match="volume 5 has 2 voxels that are NaN .* in every volume") as refused:
        check_scan(path)
    assert "fix" not in str(refused.value)
    with pytest.raises(ValueError, match="not sure how to mend this: 2 values are not finite, in volume 5"):
        fix_scan(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("derived", [trace, adc], ids=["trace", "adc"])
@pytest.mark.parametrize("entry", [None, 0.0, 1000.0], ids=["no-entry", "as-b0", "no-direction"])
@pytest.mark.parametrize("outside", [0, 400])
def test_a_derived_volume_that_is_finite_outside_of_the_mask_hides_nothing(
    tmp_path, scan, derived, entry, outside
):
    stored, table = scan
    extra = derived(stored).astype(np.float32)
    extra[:3] = outside
    longer = np.concatenate([with_gaps(stored, 0), extra], axis=-1)
    bvals, fsl = (table.bvals, table.to_fsl(AFFINE)) if entry is None else with_entry(table, entry)
    mended = fix_scan(write(tmp_path / "in", longer, bvals, fsl), tmp_path / "out")
    assert len(mended.changes) == 2
    assert_is_the_masked_scan(tmp_path / "out", stored)


@pytest.mark.parametrize("empty", [-INTERCEPT / SLOPE, np.nan], ids=["0", "NaN"])
def test_an_empty_volume_hides_nothing_outside_of_the_mask(tmp_path, scan, empty):
    stored, table = scan
    spoilt = with_gaps(stored, 0)
    spoilt[..., 10] = empty
    path = write(tmp_path / "in", spoilt, table.bvals, table.to_fsl(AFFINE))
    message = "volume 10 has" if np.isnan(empty) else "in every volume, .*`dmri-monai fix` writes it"
    with pytest.raises(ValueError, match=message):
        check_scan(path)
    assert len(fix_scan(path, tmp_path / "out").changes) == 2
    assert_is_the_masked_scan(tmp_path / "out", np.delete(stored, 10, -1))


def assert_is_the_masked_scan(folder: Path, stored: np.ndarray) -> None:
    image = nibabel.load(folder / "scan_dwi.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj)[:3], 0)
    np.testing.assert_array_equal(np.asarray(image.dataobj.get_unscaled())[3:], stored[3:])
    assert check_scan(folder / "scan_dwi.nii.gz").ok


def test_measurements_that_others_lack_are_kept_and_the_scan_is_refused(tmp_path, scan):
    stored, table = scan
    path = write(tmp_path / "in", with_gaps(stored, 3), table.bvals, table.to_fsl(AFFINE))  # b0 are whole
    with pytest.raises(ValueError, match="not finite, in volumes 3, 4, 5, 6, 7 and 25 more, and finite in"):
        fix_scan(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_b0_that_lacks_much_is_not_taken_for_a_derived_volume(tmp_path, scan):
    stored, table = scan
    spoilt = stored.astype(np.float32)
    spoilt[:8, ..., 1] = np.nan
    path = write(tmp_path / "in", spoilt, table.bvals, table.to_fsl(AFFINE))
    with pytest.raises(ValueError, match="not finite, in volume 1, and finite in others"):
        fix_scan(path, tmp_path / "out")


@pytest.mark.parametrize("extra", ["weighted", "b0"])
def test_a_measurement_without_an_entry_is_not_taken_for_a_derived_volume(tmp_path, scan, extra):
    stored, table = scan
    volume = stored[..., 7:8] if extra == "weighted" else stored[..., :1]
    path = write(tmp_path / "in", np.concatenate([stored, volume], -1), table.bvals, table.to_fsl(AFFINE))
    with pytest.raises(ValueError, match="33 entries of the table for 34 volumes.*not sure"):
        fix_scan(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_volumes_in_another_order_are_refused(tmp_path, scan):
    stored, table = scan
    path = write(tmp_path / "in", stored[..., ::-1], table.bvals, table.to_fsl(AFFINE))
    with pytest.raises(ValueError, match="not sure how to mend this: volumes in another order"):
        fix_scan(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_scan_whose_fibres_tell_nothing_is_refused(tmp_path, scan):
    stored, table = scan
    path = write(tmp_path / "in", stored[:6, :6, :6], table.bvals, table.to_fsl(AFFINE))
    with pytest.raises(ValueError, match=r"not sure of the b-vectors \(inconclusive\)"):
        fix_scan(path, tmp_path / "out")


def test_a_right_scan_is_left_alone(tmp_path, scan):
    stored, table = scan
    mended = fix_scan(write(tmp_path / "in", stored, table.bvals, table.to_fsl(AFFINE)), tmp_path / "out")
    assert (mended.changes, mended.files) == ((), ())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("taken", ["scan_dwi.bvec", "scan_dwi.json", "scan_dwi.nii.gz"])
def test_nothing_is_overwritten(tmp_path, scan, taken):
    stored, table = scan
    wrong = table.to_fsl(AFFINE) * torch.tensor([1.0, -1.0, 1.0])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / taken).write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=taken):
        fix_scan(write(tmp_path / "in", stored, table.bvals, wrong), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [taken]
    assert (tmp_path / "out" / taken).read_text(encoding="utf-8") == "mine"
