"""Headers that contradict themselves are refused; units and two orientations are read with a word about it."""

from __future__ import annotations

import gzip
import struct
import warnings

import nibabel
import numpy as np
import pytest

from dmri_monai.io import read_dwi, read_nifti
from dmri_monai.io.nifti import open_nifti
from tests.io.scans import save_image, voxels, write_scan

BITPIX, SLOPE, INTER = 72, 112, 116  # bytes into a NIfTI-1 header


def patch(path, offset, form, value):
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, offset, value)
    path.write_bytes(content)


def with_unit(path, unit, affine):
    image = nibabel.Nifti1Image(voxels(2), affine)
    image.header.set_xyzt_units(unit, "sec")
    nibabel.save(image, path)
    return path


class TestUnits:
    @pytest.mark.parametrize(("unit", "factor"), [("micron", 1e-3), ("meter", 1e3)])
    def test_they_are_read_as_millimetres_and_that_is_said(self, tmp_path, standard_affine, unit, factor):
        mm = standard_affine.numpy()
        stored = mm.copy()
        stored[:3] /= factor
        path = with_unit(tmp_path / "image.nii.gz", unit, stored)
        with pytest.warns(UserWarning, match=rf"voxels of .* {unit[:3]}.*: read as .* mm: .*image\.nii\.gz"):
            image = read_nifti(path)
        np.testing.assert_allclose(image.affine, mm, atol=1e-4)

    @pytest.mark.parametrize("unit", ["mm", "unknown"])
    def test_millimetres_and_no_unit_are_taken_as_they_stand(self, tmp_path, standard_affine, recwarn, unit):
        image = read_nifti(with_unit(tmp_path / "image.nii", unit, standard_affine.numpy()))
        np.testing.assert_allclose(image.affine, standard_affine, atol=1e-5)
        assert not recwarn

    @pytest.mark.parametrize(("unit", "size"), [("meter", 2.0), ("micron", 0.5)])
    def test_a_unit_that_no_scan_can_have_is_refused(self, tmp_path, unit, size):
        path = with_unit(tmp_path / "image.nii", unit, np.diag([size, size, size, 1]))
        with pytest.raises(ValueError, match=r"that is .* mm: .*the unit seems wrong: .*image\.nii"):
            read_nifti(path)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("offset", [SLOPE, INTER], ids=["slope", "intercept"])
def test_a_scaling_that_is_no_number_is_refused(tmp_path, value, offset):
    path = save_image(tmp_path / "image.nii", voxels(2))
    patch(path, SLOPE, "<f", 1.0)
    patch(path, offset, "<f", value)
    with pytest.raises(ValueError, match=r"(scaling is|cannot read NIfTI header).*image\.nii"):
        read_nifti(path)


def test_a_slope_of_zero_means_no_scaling(tmp_path):
    path = save_image(tmp_path / "image.nii", voxels(2))
    patch(path, SLOPE, "<f", 0.0)
    np.testing.assert_array_equal(read_nifti(path).numpy(), np.moveaxis(voxels(2), -1, 0))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
def test_a_voxel_size_that_is_not_the_types_is_refused(tmp_path, suffix):
    plain = save_image(tmp_path / "image.nii", voxels(2))
    patch(plain, BITPIX, "<h", 32)
    if suffix != ".nii":
        (tmp_path / f"image{suffix}").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(ValueError, match=r"datatype int16, but 32 bits per voxel: .*image"):
        read_nifti(tmp_path / f"image{suffix}")


def test_a_big_endian_nifti_2_image_is_read_like_any_other(tmp_path):
    header = nibabel.Nifti2Header(endianness=">")
    image = nibabel.Nifti2Image(voxels(2), np.diag([2.0, 2, 2, 1]), header)
    nibabel.save(image, tmp_path / "image.nii")
    np.testing.assert_array_equal(read_nifti(tmp_path / "image.nii").numpy(), np.moveaxis(voxels(2), -1, 0))


class TestTwoForms:
    def write(self, path, sform, qform, codes=(1, 1)):
        image = nibabel.Nifti1Image(voxels(2), sform)
        image.set_sform(sform, codes[0])
        image.set_qform(qform, codes[1])
        nibabel.save(image, path)
        return path

    def test_forms_that_agree_are_not_mentioned(self, tmp_path, standard_affine, recwarn):
        open_nifti(self.write(tmp_path / "image.nii", standard_affine.numpy(), standard_affine.numpy()))
        assert not recwarn

    @pytest.mark.parametrize("kind", ["shifted", "turned", "mirrored", "other-size"])
    def test_forms_that_disagree_are_said_with_both(self, tmp_path, standard_affine, kind):
        other = standard_affine.numpy().copy()
        c, s = np.cos(np.radians(3)), np.sin(np.radians(3))
        if kind == "shifted":
            other[0, 3] += 12.5
        if kind == "turned":
            other[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ other[:3, :3]
        if kind == "mirrored":
            other[:3, 0] *= -1
        if kind == "other-size":
            other[:3, :3] *= 2
        path = self.write(tmp_path / "image.nii", standard_affine.numpy(), other)
        with pytest.warns(
            UserWarning, match=r"sform and qform disagree by .*sform \[.*\] is used, not the qform"
        ):
            source = open_nifti(path)
        np.testing.assert_allclose(source.affine, standard_affine, atol=1e-5)

    def test_a_voxel_size_beside_the_sform_that_is_another_is_said(self, tmp_path, standard_affine):
        path = self.write(
            tmp_path / "image.nii", standard_affine.numpy(), standard_affine.numpy(), codes=(1, 0)
        )
        patch(path, 80, "<f", 7.0)  # pixdim[1]
        with pytest.warns(
            UserWarning, match=r"voxels of .* in its sform, which is used, and 7 x .* in pixdim"
        ):
            open_nifti(path)

    def test_a_form_that_is_not_set_says_nothing(self, tmp_path, standard_affine, recwarn):
        far = standard_affine.numpy() + np.eye(4, k=3) * 50
        open_nifti(self.write(tmp_path / "image.nii", standard_affine.numpy(), far, codes=(1, 0)))
        open_nifti(self.write(tmp_path / "other.nii", far, standard_affine.numpy(), codes=(0, 1)))
        assert not recwarn


def test_a_single_slice_is_said(tmp_path):
    path = write_scan(tmp_path / "dwi.nii.gz")
    image = nibabel.load(path)
    nibabel.save(image.slicer[:, :, 1:2], path)
    with pytest.warns(UserWarning, match=r"a single slice along k \(5, 4, 1\).*dwi\.nii\.gz"):
        assert read_dwi(path)[0].shape == (8, 5, 4, 1)


def test_whole_scans_say_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_dwi(write_scan(tmp_path / "dwi.nii.gz"))
