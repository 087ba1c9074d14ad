"""Text of gradient tables: what is read right, and what is an error naming file, entry and both numbers."""

from __future__ import annotations

import numpy as np
import pytest
from torch.testing import assert_close

from dmri_monai.gradients import b0_threshold_of
from dmri_monai.io import read_dwi
from dmri_monai.qspace.harmonics import mean_b0
from dmri_monai.transforms import LoadDWId
from dmri_monai.transforms.task_labels import HeadMaskd
from tests.io.scans import bvals_and_bvecs, rows, save_image, unit_vectors, voxels, write_scan


@pytest.fixture
def scan(tmp_path):
    return write_scan(tmp_path / "dwi.nii.gz")


def assert_reads_the_usual_table(path):
    bvals, bvecs = bvals_and_bvecs()
    image, table = read_dwi(path)
    np.testing.assert_allclose(table.bvals, bvals)
    np.testing.assert_allclose(table.to_fsl(image.affine), bvecs, atol=1e-10)


def write_three_volumes(folder, bvals, table):
    path = save_image(folder / "dwi.nii", voxels(3))
    (folder / "dwi.bval").write_text(rows(bvals))
    (folder / "dwi.bvec").write_text(rows(table))
    return path


class TestAcceptedLayouts:
    def test_an_n_by_3_file_is_read(self, scan):
        scan.with_name("dwi.bvec").write_text(rows(bvals_and_bvecs()[1]))
        assert_reads_the_usual_table(scan)

    def test_bvals_in_a_column_are_read(self, scan):
        scan.with_name("dwi.bval").write_text(rows(bvals_and_bvecs()[0][:, None]))
        assert_reads_the_usual_table(scan)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda text: text.replace("\n", "\r\n"), id="windows-lines"),
            pytest.param(lambda text: text.replace(" ", "\t"), id="tabs"),
            pytest.param(lambda text: text.replace("\n", " \n\n"), id="blank-lines-and-trailing-space"),
            pytest.param(lambda text: "\ufeff" + text, id="byte-order-mark"),
            pytest.param(lambda text: text.strip(), id="no-last-newline"),
        ],
    )
    def test_white_space_does_not_matter(self, scan, change):
        for kind in ("bval", "bvec"):
            sidecar = scan.with_name(f"dwi.{kind}")
            sidecar.write_bytes(change(sidecar.read_text()).encode())
        assert_reads_the_usual_table(scan)

    def test_a_mrtrix_table_is_in_the_scanner_frame(self, tmp_path, standard_affine):
        bvals, bvecs_world = bvals_and_bvecs()
        path = save_image(tmp_path / "dwi.nii.gz", voxels(), standard_affine)
        (tmp_path / "dwi.b").write_text("# command_history: mrconvert\n" + rows(np.c_[bvecs_world, bvals]))
        _, table = read_dwi(path)
        np.testing.assert_allclose(table.bvals, bvals)
        np.testing.assert_allclose(table.bvecs, bvecs_world, atol=1e-10)

    def test_a_mrtrix_and_an_fsl_table_of_one_scan_agree(self, tmp_path, standard_affine):
        path = write_scan(tmp_path / "fsl.nii", affine=standard_affine)
        image, table = read_dwi(path)
        twin = save_image(tmp_path / "mrtrix.nii", voxels(), standard_affine)
        (tmp_path / "mrtrix.b").write_text(rows(np.c_[table.bvecs, table.bvals]))
        assert_close(read_dwi(twin)[1].bvecs, table.bvecs, rtol=0, atol=1e-10)

    def test_b0_volumes_with_unit_vectors_and_no_zero_vector_are_read(self, scan):
        bvals, bvecs = bvals_and_bvecs()
        bvals[bvals == 0] = (5, 42)
        vectors = unit_vectors(len(bvals))
        scan.with_name("dwi.bval").write_text(rows(bvals))
        scan.with_name("dwi.bvec").write_text(rows(vectors.T))
        image, table = read_dwi(scan)
        assert int(table.b0_mask.sum()) == 2
        np.testing.assert_allclose(table.to_fsl(image.affine), bvecs, atol=1e-10)

    def test_norms_a_few_percent_off_are_renormalised_with_one_warning_naming_the_file(self, scan):
        scan.with_name("dwi.bvec").write_text(rows(bvals_and_bvecs()[1].T * 1.04))
        with pytest.warns(UserWarning, match=r"6 of 8 b-vectors renormalised.*dwi\.bvec") as record:
            _, table = read_dwi(scan)
        assert len(record) == 1
        assert_close(table.bvecs.norm(dim=1), (~table.b0_mask).double(), rtol=0, atol=1e-12)

    def test_bvals_in_other_units_are_noticed_with_a_warning(self, scan):
        scan.with_name("dwi.bval").write_text(rows(bvals_and_bvecs()[0] / 1000))
        with pytest.warns(UserWarning, match=r"all b-values are b0 .*from 0 to 1: expected s/mm².*dwi\.bval"):
            read_dwi(scan)

    @pytest.mark.filterwarnings("ignore:all b-values are b0")
    def test_the_b0_threshold_is_the_callers(self, scan):
        assert int(read_dwi(scan, b0_threshold=1000)[1].b0_mask.sum()) == 8


class TestThreeByThree:
    BVALS = np.array([0.0, 1000, 1000])
    VECTORS = np.array([[0.0, 0, 0], [0.6, 0.8, 0], [0, 0.6, 0.8]])

    def test_the_standard_orientation_is_read_when_only_it_has_unit_vectors(self, tmp_path):
        image, table = read_dwi(write_three_volumes(tmp_path, self.BVALS, self.VECTORS.T))
        np.testing.assert_allclose(table.to_fsl(image.affine), self.VECTORS, atol=1e-12)

    def test_the_transposed_one_is_read_when_only_it_has_unit_vectors(self, tmp_path):
        image, table = read_dwi(write_three_volumes(tmp_path, self.BVALS, self.VECTORS))
        np.testing.assert_allclose(table.to_fsl(image.affine), self.VECTORS, atol=1e-12)

    def test_it_is_an_error_when_both_have_and_differ(self, tmp_path):
        turned = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
        path = write_three_volumes(tmp_path, [1000, 1000, 1000], turned)
        with pytest.raises(ValueError, match=r"by row and by column, ambiguous in .*dwi\.bvec"):
            read_dwi(path)

    def test_it_is_read_when_both_are_the_same(self, tmp_path):
        image, table = read_dwi(write_three_volumes(tmp_path, [1000, 1000, 1000], np.eye(3)))
        np.testing.assert_allclose(table.to_fsl(image.affine), np.eye(3), atol=1e-12)

    def test_it_is_an_error_when_neither_has(self, tmp_path):
        path = write_three_volumes(tmp_path, [1000, 1000, 1000], np.eye(3) * 2)
        with pytest.raises(ValueError, match=r"b-vector 0 has length 2\.000.*dwi\.bvec"):
            read_dwi(path)


class TestErrors:
    @pytest.mark.parametrize(
        ("kind", "content", "match"),
        [
            pytest.param("bval", "", "empty", id="empty-bval"),
            pytest.param("bvec", " \n\n", "empty", id="blank-bvec"),
            pytest.param(
                "bval", "0 1 2 3 4 5 6", "7 entries in .*for 8 volumes in .*dwi.nii.gz", id="bval-short"
            ),
            pytest.param("bval", "0 1 2 3 4 5 6 7 8", "9 entries in .*for 8 volumes", id="bval-long"),
            pytest.param("bval", "0 1 2 3\n4 5 6 7", "2 rows of 4 entries", id="bval-wrapped"),
            pytest.param("bval", "0 1 2 -3 4 5 6 7", "b-value 3 is -3, expected at least 0", id="negative"),
            pytest.param("bval", "0 1 nan 3 4 5 6 7", "entry 2 of row 0 is nan, expected a finite", id="nan"),
            pytest.param(
                "bval", "0 1 2 3 -inf 5 6 7", "entry 4 of row 0 is -inf, expected a finite", id="inf"
            ),
            pytest.param("bval", "0 1 2 3 1e999 5 6 7", "entry 4 of row 0 is 1e999", id="overflow"),
            pytest.param(
                "bval", "0 1 2 3 1_000 5 6 7", "entry 4 of row 0 is '1_000', expected a num", id="_"
            ),
            pytest.param("bval", "0,1,2,3,4,5,6,7", "is '0,1,2,3,4,5,6,7', expected a number", id="commas"),
            pytest.param("bval", "0 ٣ 2 3 4 5 6 7", "expected a number", id="arabic-digit"),
            pytest.param("bvec", "1 0 0\n0 1\n0 0 1", "row 1 has 2 entries, row 0 has 3", id="ragged"),
            pytest.param(
                "bvec", rows(np.zeros((2, 8))), "2 x 8 entries, expected 3 x 8 or 8 x 3", id="two-rows"
            ),
            pytest.param("bvec", rows(np.zeros((3, 9))), "9 entries for 8 b-values", id="bvec-long"),
            pytest.param("bvec", rows(np.zeros((7, 3))), "7 entries for 8 b-values", id="bvec-short"),
            pytest.param(
                "bvec",
                rows(np.zeros((3, 8))),
                r"zero vectors at all b above 50 in .*dwi\.bvec: a scan of trace",
                id="zeros",
            ),
            pytest.param("bvec", rows(np.full((3, 8), np.nan)), "zero vectors at all b", id="nan-vectors"),
            pytest.param("bvec", rows(np.full((3, 8), np.inf)), "entry 0 of row 0 is inf", id="inf-vectors"),
        ],
    )
    def test_a_wrong_sidecar_is_named_with_the_entry_and_the_numbers(self, scan, kind, content, match):
        scan.with_name(f"dwi.{kind}").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=f"(?s){match}") as caught:
            read_dwi(scan)
        assert f"dwi.{kind}" in str(caught.value)

    @pytest.mark.parametrize("kind", ["bval", "bvec"])
    def test_a_binary_sidecar_is_named(self, scan, kind):
        scan.with_name(f"dwi.{kind}").write_bytes(bytes(range(256)))
        with pytest.raises(ValueError, match=rf"not a text file.*dwi\.{kind}"):
            read_dwi(scan)

    def test_one_trailing_volume_too_many_is_an_error_naming_both_counts(self, scan):
        save_image(scan, voxels(9))
        with pytest.raises(ValueError, match=r"8 entries in .*dwi\.bval for 9 volumes in .*dwi\.nii\.gz"):
            read_dwi(scan)

    def test_a_shell_encoded_in_the_vector_length_gets_the_hint(self, scan):
        bvals, bvecs = bvals_and_bvecs()
        bvals[1] = 3000
        lengths = np.sqrt(bvals / 3000)[:, None]
        scan.with_name("dwi.bval").write_text(rows(bvals))
        scan.with_name("dwi.bvec").write_text(rows((bvecs * lengths).T))
        with pytest.raises(
            ValueError, match=r"b-vector 2 .*sqrt\(b/b_max\) = 0\.577: the shell seems.*dwi\.bvec"
        ):
            read_dwi(scan)

    @pytest.mark.parametrize(
        ("row", "match"),
        [
            pytest.param("0 0 1", "3 columns, expected 4", id="three-columns"),
            pytest.param("0 0 1 -5", "b-value 0 is -5", id="negative"),
            pytest.param("0 0 1 nan", "b-value 0 is nan", id="nan-b"),
            pytest.param("0 0 2 1000", r"b-vector 0 has length 2\.000", id="norm"),
        ],
    )
    def test_a_wrong_mrtrix_table_is_named_with_the_entry(self, tmp_path, row, match):
        path = save_image(tmp_path / "dwi.nii", voxels(2))
        (tmp_path / "dwi.b").write_text(f"{row}\n{row}\n")
        with pytest.raises(ValueError, match=rf"{match}.*dwi\.b"):
            read_dwi(path)


def test_a_bval_far_beyond_any_scanner_is_refused(tmp_path):
    path = write_scan(tmp_path / "dwi.nii.gz")
    sidecar = next(tmp_path.glob("*.bval"))
    words = sidecar.read_text().split()
    sidecar.write_text(" ".join([*words[:2], "1e9", *words[3:]]))
    with pytest.raises(
        ValueError, match=rf"b-value 2 is 1e\+09, expected s/mm², at most 1e\+06 in .*{sidecar.name}"
    ):
        read_dwi(path)


class TestB0Threshold:
    def with_bvals(self, folder, bvals, vectors=None):
        bvecs = unit_vectors(8) if vectors is None else vectors
        image = write_scan(folder / "dwi.nii.gz")
        image.with_name("dwi.bval").write_text(rows(np.array(bvals)))
        image.with_name("dwi.bvec").write_text(rows(bvecs.T))
        return image

    def test_an_ivim_series_that_would_be_averaged_into_b0_is_named_with_its_range(self, tmp_path):
        image = self.with_bvals(tmp_path, [0, 10, 20, 50, 1000, 1000, 1000, 1000])
        with pytest.warns(UserWarning, match=r"4 volumes from b = 0 to 50 count as b0 \(b0_threshold 50\)"):
            table = read_dwi(image)[1]
        assert table.b0_range == (0, 50)
        kept_apart = read_dwi(image, b0_threshold=5)[1]
        assert kept_apart.b0_range == (0, 0)
        assert int(kept_apart.b0_mask.sum()) == 1

    def test_b0_that_differ_by_the_rounding_of_a_scanner_say_nothing(self, tmp_path, recwarn):
        read_dwi(self.with_bvals(tmp_path, [0, 5, 5, 10, 1000, 1000, 1000, 1000]))
        assert not recwarn

    def test_a_threshold_other_than_the_default_reaches_the_transforms(self, tmp_path):
        vectors = unit_vectors(8)
        vectors[:2] = 0
        image = self.with_bvals(tmp_path, [100, 100, *[1000] * 6], vectors)
        with pytest.raises(
            ValueError, match=r"no b0 volume in .*dwi\.bvec: lowest b is 100, above b0_threshold 50"
        ):
            read_dwi(image)
        item = LoadDWId("image", b0_threshold=100)({"image": str(image)})
        assert b0_threshold_of(item["image"]) == 100
        mean = HeadMaskd()(item)["head"]
        assert mean.shape == (1, 5, 4, 3)

    def test_a_scan_without_b0_is_told_the_threshold_to_give(self, tmp_path):
        image, table = read_dwi(self.with_bvals(tmp_path, [100, 100, *[1000] * 6]))
        with pytest.raises(ValueError, match="lowest b is 100, above b0_threshold 50; give b0_threshold=100"):
            mean_b0(image.as_tensor(), table.bvals, table.b0_threshold)


@pytest.mark.parametrize(
    "blank", ["\x1c", "\x1f", "\xa0", "\x0b", "\x0c", "\x85", "\u2003", "\x00"], ids=ascii
)
@pytest.mark.parametrize("kind", ["bval", "bvec"])
def test_only_ascii_blanks_separate_numbers(tmp_path, blank, kind):
    image = write_scan(tmp_path / "dwi.nii.gz")
    path = image.with_name(f"dwi.{kind}")
    path.write_text(path.read_text().replace(" ", blank, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"expected a number in .*dwi\.{kind}"):
        read_dwi(image)


@pytest.mark.parametrize("blank", ["\t", "   ", " \t "], ids=ascii)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", " \n\n"], ids=ascii)
def test_tabs_and_line_ends_of_every_system_do(tmp_path, blank, end):
    image = write_scan(tmp_path / "dwi.nii.gz")
    expected = read_dwi(image)[1]
    for kind in ("bval", "bvec"):
        path = image.with_name(f"dwi.{kind}")
        path.write_bytes(path.read_text().replace(" ", blank).replace("\n", end).encode())
    assert read_dwi(image)[1] == expected


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (9, "9 entries in .* for 8 volumes.*out of the image"),
        (7, "7 entries in .* for 8 volumes.*trace or ADC map"),
    ],
)
def test_one_entry_more_or_less_than_volumes_is_explained(tmp_path, entries, match):
    image = write_scan(tmp_path / "dwi.nii.gz")
    bvals, bvecs = bvals_and_bvecs(entries)
    image.with_name("dwi.bval").write_text(rows(bvals))
    image.with_name("dwi.bvec").write_text(rows(bvecs.T))
    with pytest.raises(ValueError, match=f"(?s){match}"):
        read_dwi(image)
