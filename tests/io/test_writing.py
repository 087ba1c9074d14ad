"""Files appear whole or not at all, in a type and with a header other tools read."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_nifti, write_dwi, write_nifti
from dmri_monai.io.writing import replacing

AFFINE = torch.diag(torch.tensor([-2.0, 2, 2, 1]))


@pytest.fixture
def scan():
    data = torch.rand(4, 5, 6, 3, generator=torch.Generator().manual_seed(0))
    table = GradientTable(torch.tensor([0.0, 1000, 1000, 1000]), torch.eye(4)[:, 1:])
    return MetaTensor(data, affine=AFFINE), table


class TestDefaultTypes:
    @pytest.mark.parametrize(
        ("given", "stored"),
        [
            (torch.float32, "float32"),
            (torch.float64, "float32"),
            (torch.bfloat16, "float32"),
            (torch.uint8, "uint8"),
            (torch.int16, "int16"),
            (torch.int64, "int32"),
            (torch.bool, "uint8"),
        ],
        ids=str,
    )
    def test_values_are_stored_in_a_type_other_tools_read(self, tmp_path, given, stored):
        data = torch.arange(60).reshape(5, 4, 3).remainder(2).to(given)
        write_nifti(tmp_path / "image.nii.gz", data, AFFINE)
        image = nibabel.load(tmp_path / "image.nii.gz")
        assert image.get_data_dtype() == stored
        np.testing.assert_array_equal(np.asarray(image.dataobj), data.double().numpy())

    def test_a_given_type_is_stored(self, tmp_path):
        write_nifti(tmp_path / "image.nii", np.ones((5, 4, 3)), AFFINE, dtype=np.uint8)
        assert nibabel.load(tmp_path / "image.nii").get_data_dtype() == np.uint8

    @pytest.mark.parametrize(
        ("value", "match"),
        [(300.0, "do not fit uint8"), (-1.0, "do not fit"), (0.5, "fractions"), (np.nan, "do not fit")],
    )
    def test_values_a_type_cannot_hold_are_refused(self, tmp_path, value, match):
        with pytest.raises(ValueError, match=rf"{match}.*image\.nii"):
            write_nifti(tmp_path / "image.nii", np.full((5, 4, 3), value), AFFINE, dtype=np.uint8)

    def test_64_bit_values_beyond_32_bits_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="do not fit int32"):
            write_nifti(tmp_path / "image.nii", np.full((5, 4, 3), 2**40), AFFINE)

    def test_complex_values_are_refused(self, tmp_path):
        with pytest.raises(TypeError, match="complex64"):
            write_nifti(tmp_path / "image.nii", np.ones((5, 4, 3), np.complex64), AFFINE)


def test_channels_come_first_in_memory_and_last_in_the_file(tmp_path):
    data = torch.rand(2, 5, 4, 3)
    write_nifti(tmp_path / "image.nii", data, AFFINE)
    assert nibabel.load(tmp_path / "image.nii").shape == (5, 4, 3, 2)
    torch.testing.assert_close(read_nifti(tmp_path / "image.nii").as_tensor(), data)


def test_nan_survives_in_an_image(tmp_path):
    write_nifti(tmp_path / "peaks.nii.gz", torch.full((3, 5, 4, 3), torch.nan), AFFINE)
    assert read_nifti(tmp_path / "peaks.nii.gz").isnan().all()


def test_sform_and_qform_both_hold_the_affine(standard_affine, tmp_path):
    write_nifti(tmp_path / "image.nii", torch.zeros(5, 4, 3), standard_affine)
    image = nibabel.load(tmp_path / "image.nii")
    for form, code in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(form, standard_affine, atol=1e-5)


def test_a_qform_that_cannot_hold_shear_is_left_unset(tmp_path):
    sheared = AFFINE.clone()
    sheared[0, 1] = 0.6
    write_nifti(tmp_path / "image.nii", torch.zeros(5, 4, 3), sheared)
    image = nibabel.load(tmp_path / "image.nii")
    assert int(image.header["qform_code"]) == 0
    np.testing.assert_allclose(image.affine, sheared)


@pytest.mark.parametrize(
    ("array", "affine", "match"),
    [
        pytest.param(torch.zeros(5, 4), AFFINE, r"shape \(5, 4\)", id="2-D"),
        pytest.param(torch.zeros(1, 1, 5, 4, 3), AFFINE, r"shape \(1, 1, 5, 4, 3\)", id="5-D"),
        pytest.param(torch.zeros(5, 0, 3), AFFINE, r"shape \(5, 0, 3\)", id="empty"),
        pytest.param(torch.zeros(5, 4, 3), torch.zeros(4, 4), "singular", id="zero-affine"),
        pytest.param(
            torch.zeros(5, 4, 3), torch.eye(3), r"shape \(3, 3\), expected \(4, 4\)", id="3x3-affine"
        ),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path, array, affine, match):
    with pytest.raises(ValueError, match=rf"{match}.*image\.nii"):
        write_nifti(tmp_path / "image.nii", array, affine)
    assert not list(tmp_path.iterdir())


class TestAllOrNone:
    def test_three_files_of_one_stem_appear_and_nothing_else(self, tmp_path, scan):
        write_dwi(tmp_path / "new" / "sub-01_dwi.nii.gz", *scan)
        names = sorted(path.name for path in (tmp_path / "new").iterdir())
        assert names == ["sub-01_dwi.bval", "sub-01_dwi.bvec", "sub-01_dwi.nii.gz"]

    def test_a_failure_while_writing_leaves_the_old_files_and_no_others(self, tmp_path, scan, monkeypatch):
        write_dwi(tmp_path / "dwi.nii", *scan)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

        def full_disk(self, path, **_):
            Path(path).write_bytes(b"half")
            raise OSError("no space left on device")

        monkeypatch.setattr(nibabel.Nifti1Image, "to_filename", full_disk)
        with pytest.raises(OSError, match="no space left"):
            write_dwi(tmp_path / "dwi.nii", scan[0] * 2, scan[1])
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def test_an_interruption_leaves_nothing(self, tmp_path):
        def interrupted():
            with replacing(tmp_path / "a", tmp_path / "b") as (a, _):
                a.write_text("half")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert not list(tmp_path.iterdir())

    def test_files_have_the_permissions_of_ordinary_ones(self, tmp_path, scan):
        (tmp_path / "ordinary").write_text("")
        write_dwi(tmp_path / "dwi.nii", *scan)
        modes = {os.stat(path).st_mode for path in tmp_path.iterdir()}
        assert len(modes) == 1

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            pytest.param(
                lambda i, t: (i.as_tensor(), t), TypeError, "is Tensor, expected MetaTensor", id="no-affine"
            ),
            pytest.param(lambda i, t: (i[:3], t), ValueError, r"\(3, 5, 6, 3\) for 4 gradients", id="count"),
            pytest.param(lambda i, t: (i[0], t), ValueError, r"\(5, 6, 3\) for 4 gradients", id="3-D"),
            pytest.param(lambda i, t: (i * torch.nan, t), ValueError, "360 voxels that are NaN", id="nan"),
        ],
    )
    def test_a_scan_that_cannot_be_written_leaves_nothing(self, tmp_path, scan, change, error, match):
        with pytest.raises(error, match=rf"{match}.*dwi\.nii"):
            write_dwi(tmp_path / "dwi.nii", *change(*scan))
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["image.nii", "image.nii.gz"])
def test_full_disk_leaves_nothing_and_names_the_file(tmp_path, full_disk, name):
    with full_disk, pytest.raises(OSError, match=name.replace(".", r"\.")):
        write_nifti(tmp_path / name, torch.rand(16, 16, 16), AFFINE)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_the_earlier_scan_whole(tmp_path, full_disk):
    table = GradientTable(torch.tensor([0.0, 1000, 1000, 1000]), torch.eye(4)[:, 1:])
    image = MetaTensor(torch.rand(4, 12, 12, 12), affine=AFFINE)
    write_dwi(tmp_path / "scan.nii.gz", image, table)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with full_disk, pytest.raises(OSError, match="scan"):
        write_dwi(tmp_path / "scan.nii.gz", image * 2, table)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def write_new(*paths):
    with replacing(*paths) as aside:
        for path in aside:
            path.write_bytes(b"new")


@pytest.mark.parametrize("calls", range(4))
@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_files_stopped_by_a_signal_between_two_renames_appear_together_or_not_at_all(
    tmp_path, monkeypatch, stop, calls
):
    names, rename, left = ("a", "b", "c"), os.replace, calls

    def interrupted(*paths):
        nonlocal left
        rename(*paths)
        left -= 1
        if left == -1:
            raise stop

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(stop):
        write_new(*(tmp_path / name for name in names))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_folder_in_the_way_of_one_of_several_files_leaves_them_all_as_they_were(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError, match="in the way.*b"):
        write_new(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2
