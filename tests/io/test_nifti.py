"""Every way NIfTI stores voxels, against nibabel; damaged files end in an error that names them."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
import torch

from dmri_monai.io import read_dwi, read_nifti
from tests.io.scans import SHAPE, rows, save_image, voxels, write_scan

DTYPES = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
SUFFIXES = pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])


def save(path, data, *, slope=None, inter=None, big_endian=False, image=nibabel.Nifti1Image):
    header = image.header_class(endianness=">" if big_endian else "<")
    header.set_data_dtype(data.dtype)
    nifti = image(data, np.diag([-2.0, 2, 2, 1]), header)
    if slope is None:
        nibabel.save(nifti, path)
        return path
    # raw integers with a scaling in the header: written past nibabel, which would rescale
    header = nifti.header.copy()
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, inter, 352
    header["magic"] = b"n+1"
    opener = gzip.open if path.name.endswith(".gz") else open
    with opener(path, "wb") as stream:
        header.write_to(stream)
        stream.write(bytes(352 - stream.tell()) + data.astype(header.get_data_dtype()).tobytes(order="F"))
    return path


@SUFFIXES
@pytest.mark.parametrize("big_endian", [False, True], ids=["little", "big"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_and_byte_order_is_read_as_nibabel_reads_it(tmp_path, dtype, big_endian, suffix):
    path = save(tmp_path / f"image{suffix}", voxels(3).clip(0, 100).astype(dtype), big_endian=big_endian)
    expected = np.moveaxis(nibabel.load(path).get_fdata(dtype=np.float32), -1, 0)
    np.testing.assert_array_equal(read_nifti(path).numpy(), expected)


@SUFFIXES
@pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
def test_scaling_in_the_header_is_applied(tmp_path, dtype, suffix):
    path = save(tmp_path / f"image{suffix}", voxels(3).astype(dtype), slope=0.37, inter=-12.5)
    expected = np.moveaxis(voxels(3) * np.float64(np.float32(0.37)) - 12.5, -1, 0)
    np.testing.assert_allclose(read_nifti(path).numpy(), expected, rtol=1e-6, atol=1e-5)


def test_a_slope_of_zero_means_no_scaling(tmp_path):
    path = save(tmp_path / "image.nii", voxels(3), slope=0.0, inter=7.0)
    np.testing.assert_array_equal(read_nifti(path).numpy(), np.moveaxis(voxels(3), -1, 0))


def test_nifti_two_is_read(tmp_path):
    path = save(tmp_path / "image.nii.gz", voxels(3), image=nibabel.Nifti2Image)
    np.testing.assert_array_equal(read_nifti(path).numpy(), np.moveaxis(voxels(3), -1, 0))


def test_a_three_dimensional_image_has_one_channel(tmp_path):
    path = save_image(tmp_path / "mask.nii.gz", voxels(1)[..., 0])
    assert read_nifti(path).shape == (1, *SHAPE)


def test_large_labels_survive_in_an_integer_type(tmp_path):
    labels = np.full(SHAPE, 2**24 + 1, dtype=np.int32)
    path = save_image(tmp_path / "labels.nii.gz", labels)
    assert int(read_nifti(path, dtype=torch.int64).max()) == 2**24 + 1


def test_the_affine_is_nibabels(standard_affine, tmp_path):
    path = save_image(tmp_path / "image.nii.gz", voxels(2), standard_affine)
    np.testing.assert_array_equal(read_nifti(path).affine.numpy(), nibabel.load(path).affine)


def test_nan_is_kept_in_an_image_and_refused_in_a_scan(tmp_path):
    path = write_scan(tmp_path / "dwi.nii.gz")
    data = voxels(8, np.float32)
    data[1, 2, 0, 5] = np.nan
    save_image(path, data)
    assert int(read_nifti(path).isnan().sum()) == 1
    with pytest.raises(ValueError, match=r"volume 5 has 1 voxels that are NaN.*dwi\.nii\.gz"):
        read_dwi(path)


class TestDamage:
    @pytest.mark.parametrize("keep", [0.02, 0.5, 0.9, -8, -4, -1], ids=str)
    def test_a_truncated_gzip_is_an_error_naming_the_file(self, tmp_path, keep):
        path = write_scan(tmp_path / "dwi.nii.gz")
        content = path.read_bytes()
        path.write_bytes(content[: keep if keep < 0 else int(len(content) * keep)])
        with pytest.raises((ValueError, OSError), match=r"dwi\.nii\.gz"):
            read_dwi(path)

    def test_a_flipped_byte_in_a_gzip_is_an_error_naming_the_file(self, tmp_path):
        path = write_scan(tmp_path / "dwi.nii.gz")
        content = bytearray(path.read_bytes())
        content[-3000 if len(content) > 4000 else len(content) // 2] ^= 0x5A
        path.write_bytes(content)
        with pytest.raises((ValueError, OSError), match=r"dwi\.nii\.gz"):
            read_dwi(path)

    def test_a_truncated_nii_says_how_many_bytes_are_missing(self, tmp_path):
        path = write_scan(tmp_path / "dwi.nii")
        path.write_bytes(path.read_bytes()[:-10])
        with pytest.raises(ValueError, match=r"truncated.*needs 1312 bytes, file has 1302.*dwi\.nii"):
            read_dwi(path)

    @pytest.mark.parametrize("content", [b"", b"not an image", b"\x1f\x8b", bytes(348)], ids=repr)
    @SUFFIXES
    def test_what_is_no_image_is_an_error_naming_the_file(self, tmp_path, content, suffix):
        path = write_scan(tmp_path / f"dwi{suffix}")
        path.write_bytes(content)
        with pytest.raises((ValueError, OSError), match=r"dwi\.nii"):
            read_dwi(path)

    def test_a_header_that_claims_terabytes_asks_for_no_memory(self, tmp_path):
        path = write_scan(tmp_path / "dwi.nii")
        content = bytearray(path.read_bytes())
        content[42:50] = np.array([30000] * 4, dtype="<i2").tobytes()
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"truncated.*dwi\.nii"):
            read_dwi(path)

    def test_a_missing_file_is_an_error_naming_it(self, tmp_path):
        with pytest.raises(OSError, match=r"nowhere\.nii\.gz"):
            read_dwi(tmp_path / "nowhere.nii.gz")

    @pytest.mark.parametrize("name", ["dwi.mgz", "dwi.img", "dwi", ".nii"])
    def test_another_format_is_refused_by_name(self, tmp_path, name):
        with pytest.raises(ValueError, match=r"neither \.nii nor \.nii\.gz"):
            read_nifti(tmp_path / name)


class TestShapesAndAffines:
    @pytest.mark.parametrize("shape", [SHAPE, (*SHAPE, 1, 8)], ids=["3-D", "5-D"])
    def test_a_scan_has_four_axes(self, tmp_path, shape):
        path = save_image(tmp_path / "dwi.nii.gz", np.ones(shape, np.int16))
        with pytest.raises(ValueError, match=rf"{len(shape)} axes .*expected 4.*dwi\.nii\.gz"):
            read_dwi(path)

    def test_five_axes_are_no_image(self, tmp_path):
        path = save_image(tmp_path / "image.nii", np.ones((*SHAPE, 1, 3), np.int16))
        with pytest.raises(ValueError, match=r"5 axes .*image\.nii"):
            read_nifti(path)

    @pytest.mark.parametrize(
        "column", [(0, 0, 0), (0, 2, 0), (np.nan, 0, 0)], ids=["zero", "parallel", "nan"]
    )
    def test_an_impossible_affine_is_an_error_naming_the_file(self, tmp_path, column):
        path = write_scan(tmp_path / "dwi.nii")
        content = bytearray(path.read_bytes())
        rows_of_sform = np.diag([-2.0, 2, 2, 1])[:3].astype("<f4")
        rows_of_sform[:, 0] = column
        content[280:328] = rows_of_sform.tobytes()
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"affine is (singular|not finite).*dwi\.nii"):
            read_dwi(path)

    def test_complex_voxels_are_refused(self, tmp_path):
        path = save_image(tmp_path / "image.nii", voxels(2).astype(np.complex64))
        with pytest.raises(ValueError, match=r"complex64, expected real numbers.*image\.nii"):
            read_nifti(path)


def without_orientation(path):
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # qform_code, sform_code
    path.write_bytes(content)
    return path


def test_an_image_without_orientation_is_read_as_las_with_a_warning(tmp_path):
    path = without_orientation(write_scan(tmp_path / "dwi.nii"))
    with pytest.warns(UserWarning, match=r"orientation unknown, taken as LAS.*dwi\.nii"):
        image, table = read_dwi(path)
    assert nibabel.aff2axcodes(image.affine.numpy()) == ("L", "A", "S")
    torch.testing.assert_close(table.in_voxel_frame(image.affine), table.to_fsl(image.affine))


def test_a_scanner_frame_table_of_an_image_without_orientation_is_an_error(tmp_path):
    path = without_orientation(write_scan(tmp_path / "dwi.nii"))
    (tmp_path / "dwi.bvec").unlink()
    (tmp_path / "dwi.b").write_text(rows(np.c_[np.eye(3)[np.arange(8) % 3], np.full(8, 1000)]))
    with (
        pytest.warns(UserWarning, match="orientation unknown"),
        pytest.raises(ValueError, match=r"dwi\.b is in scanner axes"),
    ):
        read_dwi(path)


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "inf"])
def test_an_origin_that_is_not_finite_is_refused(tmp_path, value):
    path = write_scan(tmp_path / "dwi.nii.gz")
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[292:296] = np.float32(value).tobytes()  # srow_x[3]
    path.write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(ValueError, match=f"affine is not finite.*{path.name}"):
        read_dwi(path)


def test_an_image_larger_than_memory_is_an_os_error(tmp_path, monkeypatch):
    def exhausted(*shape, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # as torch puts it

    path = write_scan(tmp_path / "dwi.nii.gz")
    monkeypatch.setattr(torch, "empty", exhausted)
    with pytest.raises(OSError, match=r"no memory for 480 voxels of shape \(8, 5, 4, 3\): .*dwi.nii.gz"):
        read_nifti(path)
