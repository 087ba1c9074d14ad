"""Which files belong to a scan: same stem, BIDS inheritance, HCP names, eddy's rotated vectors."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from dmri_monai.io import read_dwi
from dmri_monai.io.sidecars import sidecars_of
from tests.io.scans import bvals_and_bvecs, rows, save_image, voxels, write_scan


def write_table(folder, stem, bval=1000.0, suffixes=("bval", "bvec")):
    """A table whose b-value says which file was read."""
    folder.mkdir(parents=True, exist_ok=True)
    bvals, bvecs = bvals_and_bvecs()
    texts = {"bval": rows(np.where(bvals > 0, bval, 0)), "bvec": rows(bvecs.T)}
    for suffix in suffixes:
        (folder / f"{stem}.{suffix}").write_text(texts[suffix])


def shell_read(path) -> int:
    return round(read_dwi(path)[1].shells()[0].bval)


class TestBidsInheritance:
    @pytest.fixture
    def root(self, tmp_path):
        save_image(tmp_path / "sub-01" / "ses-a" / "dwi" / "sub-01_ses-a_run-1_dwi.nii.gz", voxels())
        return tmp_path

    @pytest.fixture
    def image(self, root):
        return next(root.rglob("*_dwi.nii.gz"))

    @pytest.mark.parametrize(
        ("folder", "stem"),
        [
            pytest.param(".", "dwi", id="data-set"),
            pytest.param("sub-01", "sub-01_dwi", id="subject"),
            pytest.param("sub-01/ses-a", "sub-01_ses-a_dwi", id="session"),
            pytest.param("sub-01/ses-a/dwi", "sub-01_ses-a_dwi", id="folder"),
        ],
    )
    def test_a_table_applies_from_every_level(self, root, image, folder, stem):
        write_table(root / folder, stem)
        assert shell_read(image) == 1000

    def test_the_nearest_table_wins(self, root, image):
        write_table(root, "dwi", 1000)
        write_table(root / "sub-01" / "ses-a", "sub-01_ses-a_dwi", 3000)
        assert shell_read(image) == 3000

    def test_the_more_specific_of_one_folder_wins(self, root, image):
        write_table(image.parent, "sub-01_dwi", 1000)
        write_table(image.parent, "sub-01_run-1_dwi", 3000)
        assert shell_read(image) == 3000

    def test_bvals_and_bvecs_are_inherited_one_by_one(self, root, image):
        write_table(root, "dwi", 2000, ["bval"])
        write_table(image.parent, "sub-01_ses-a_run-1_dwi", 1000, ["bvec"])
        assert shell_read(image) == 2000

    @pytest.mark.parametrize("stem", ["sub-02_dwi", "sub-01_run-2_dwi", "sub-01_bold", "sub-01_acq-x_dwi"])
    def test_a_table_of_another_scan_does_not_apply(self, image, stem):
        write_table(image.parent, stem)
        with pytest.raises(FileNotFoundError, match="no b-values and no b-vectors"):
            read_dwi(image)

    def test_a_table_above_the_data_set_does_not_apply(self, tmp_path):
        image = save_image(tmp_path / "data" / "sub-01" / "dwi" / "sub-01_dwi.nii.gz", voxels())
        write_table(tmp_path, "dwi")
        with pytest.raises(FileNotFoundError, match=r"sub-01_dwi\.nii\.gz"):
            read_dwi(image)

    def test_two_equally_specific_tables_are_an_error_naming_both(self, image):
        write_table(image.parent, "sub-01_run-1_dwi")
        write_table(image.parent, "sub-01_ses-a_dwi")
        with pytest.raises(ValueError, match=r"both .*sub-01_run-1_dwi\.bval and .*sub-01_ses-a_dwi\.bval"):
            read_dwi(image)

    def test_files_are_listed_general_to_specific(self, root, image):
        for path in (
            root / "dwi.json",
            root / "sub-01" / "sub-01_dwi.json",
            image.parent / "sub-01_ses-a_dwi.json",
        ):
            path.write_text("{}")
        assert [p.name for p in sidecars_of(image, "json")] == [
            "dwi.json",
            "sub-01_dwi.json",
            "sub-01_ses-a_dwi.json",
        ]

    def test_a_name_without_entities_inherits_nothing(self, tmp_path):
        image = save_image(tmp_path / "my_scan.nii", voxels())
        write_table(tmp_path, "scan")
        with pytest.raises(FileNotFoundError, match=r"my_scan\.nii"):
            read_dwi(image)


def test_hcp_names_beside_the_image_are_found(tmp_path):
    image = save_image(tmp_path / "data.nii.gz", voxels())
    bvals, bvecs = bvals_and_bvecs()
    (tmp_path / "bvals").write_text(rows(bvals))
    (tmp_path / "bvecs").write_text(rows(bvecs.T))
    assert shell_read(image) == 1000


def test_the_same_stem_wins_over_hcp_names(tmp_path):
    image = write_scan(tmp_path / "data.nii.gz")
    (tmp_path / "bvals").write_text(rows(np.full(8, 3000)))
    assert shell_read(image) == 1000


def test_a_link_to_a_scan_finds_the_sidecars_of_its_target(tmp_path):
    target = write_scan(tmp_path / "data" / "sub-01_dwi.nii.gz")
    (tmp_path / "studies").mkdir()
    link = tmp_path / "studies" / "sub-01.nii.gz"
    link.symlink_to(target)
    assert shell_read(link) == 1000


@pytest.mark.parametrize(
    ("kind", "other", "name"), [("bval", "bvec", "b-values"), ("bvec", "bval", "b-vectors")]
)
def test_a_missing_sidecar_is_an_error_saying_which_what_is_there_and_what_was_looked_for(
    tmp_path, kind, other, name
):
    image = write_scan(tmp_path / "dwi.nii.gz")
    image.with_name(f"dwi.{kind}").unlink()
    with pytest.raises(FileNotFoundError) as error:
        read_dwi(image)
    message, there = str(error.value), image.with_name(f"dwi.{other}")
    sought = f"dwi.{kind}, dwi.{kind}s, {kind}s, a .{kind} inherited as BIDS allows, dwi.b"
    assert message == f"no {name} for {image}: {there} is there; looked in vain for {sought}"
    assert message.count(f".{other}") == 1  # what is there is not said to lack


def test_two_sidecars_of_one_stem_are_an_error(tmp_path):
    image = write_scan(tmp_path / "dwi.nii.gz")
    image.with_name("dwi.bvals").write_text("0")
    with pytest.raises(ValueError, match=r"both dwi\.bval and dwi\.bvals"):
        read_dwi(image)


def test_a_mrtrix_table_that_cannot_be_read_is_an_error_until_another_is_declared(tmp_path):
    image = write_scan(tmp_path / "dwi.nii.gz")
    image.with_name("dwi.b").write_text("nonsense")
    with pytest.raises(ValueError, match=r"dwi\.b$"):
        read_dwi(image)
    assert read_dwi(image, bvecs="fsl")[1].shells()[0].bval == 1000


class TestEddy:
    @pytest.fixture
    def image(self, tmp_path):
        image = write_scan(tmp_path / "dwi.nii.gz")
        image.with_name("dwi.eddy_rotated_bvecs").write_text(rows(bvals_and_bvecs()[1].T[::-1]))
        return image

    def test_rotated_vectors_are_used_when_asked_for(self, image):
        scan, table = read_dwi(image, bvecs="eddy")
        np.testing.assert_allclose(table.to_fsl(scan.affine), bvals_and_bvecs()[1][:, ::-1], atol=1e-10)

    def test_rotated_vectors_that_are_not_used_are_reported(self, image, caplog):
        with caplog.at_level(logging.WARNING):
            scan, table = read_dwi(image)
        assert "dwi.eddy_rotated_bvecs is present and not used; pass bvecs='eddy'" in caplog.text
        np.testing.assert_allclose(table.to_fsl(scan.affine), bvals_and_bvecs()[1], atol=1e-10)

    def test_asking_for_them_in_vain_is_an_error(self, image):
        image.with_name("dwi.eddy_rotated_bvecs").unlink()
        with pytest.raises(FileNotFoundError, match=r"no dwi\.eddy_rotated_bvecs beside .*dwi\.nii\.gz"):
            read_dwi(image, bvecs="eddy")

    def test_when_they_are_the_only_vectors_the_error_says_how_to_use_them(self, image):
        image.with_name("dwi.bvec").unlink()
        with pytest.raises(FileNotFoundError, match="pass bvecs='eddy'"):
            read_dwi(image)

    def test_another_choice_is_refused(self, image):
        with pytest.raises(ValueError, match="bvecs is 'rotated', expected one of 'auto', 'fsl'"):
            read_dwi(image, bvecs="rotated")
