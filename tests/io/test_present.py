"""A name that exists is never fallen back from: links that lead nowhere, and files that only stand for content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from dmri_monai.io import read_dwi, read_nifti, scans, subjects
from dmri_monai.io.bids import data_list
from dmri_monai.io.hcp import hcp_list
from dmri_monai.io.present import NotFetchedError, folders, present, required
from dmri_monai.training.checkpoint import load_pretrained
from tests.io.scans import bvals_and_bvecs, rows, save_image, voxels, write_scan

NOWHERE = "../.git/annex/objects/Zx/9k/MD5E-s1--a/MD5E-s1--a"


def unfetch(path: Path) -> None:
    """What datalad leaves of a large file before it is fetched."""
    path.unlink(missing_ok=True)
    path.symlink_to(NOWHERE)


@pytest.fixture
def study(tmp_path):
    """A scan with every kind of file, and general ones of another protocol at the root."""
    image = write_scan(tmp_path / "sub-01" / "dwi" / "sub-01_dwi.nii.gz")
    bvals, bvecs = bvals_and_bvecs()
    (tmp_path / "dwi.bval").write_text(rows(bvals * 3))
    (tmp_path / "dwi.bvec").write_text(rows(bvecs.T[::-1]))
    (tmp_path / "dwi.json").write_text('{"TotalReadoutTime": 0.5}')
    return image


@pytest.mark.parametrize("ending", [".nii.gz", ".bval", ".bvec", ".json", ".b", ".eddy_rotated_bvecs"])
def test_a_scans_own_unfetched_file_is_named_with_the_way_to_fetch_it(study, ending):
    path = study.with_name(f"sub-01_dwi{ending}")
    unfetch(path)
    with pytest.raises(NotFetchedError, match=rf"{path} is a link to .*annex.*datalad get"):
        read_dwi(study)


@pytest.mark.parametrize("ending", [".nii.gz", ".bval", ".json"])
@pytest.mark.parametrize(
    "content",
    [
        "/annex/objects/MD5E-s12--0a.gz\n",
        "../../.git/annex/objects/a/b/c",
        "version https://git-lfs.github.com/spec/v1\n",
    ],
    ids=["unlocked", "without-links", "lfs"],
)
def test_a_file_that_only_stands_for_its_content_is_named(study, ending, content):
    path = study.with_name(f"sub-01_dwi{ending}")
    path.write_text(content)
    with pytest.raises(NotFetchedError, match=rf"{path} only stands for content"):
        read_dwi(study)


def test_general_files_count_where_the_scan_has_no_name_of_its_own(study):
    """The control: without the link, the root's table is the scan's."""
    study.with_name("sub-01_dwi.bval").unlink()
    assert read_dwi(study)[1].bvals.max() == 3000


def test_half_a_table_beside_a_link_is_not_completed_beside_its_target(tmp_path):
    target = write_scan(tmp_path / "data" / "sub-01_dwi.nii.gz")
    link = tmp_path / "studies" / "scan.nii.gz"
    link.parent.mkdir()
    link.symlink_to(target)
    link.with_name("scan.bval").write_text(rows(bvals_and_bvecs()[0]))
    with pytest.raises(FileNotFoundError, match="no b-vectors for .*scan.nii.gz"):
        read_dwi(link)


class TestDataSets:
    @pytest.fixture
    def root(self, study):
        truth = study.parents[2] / "derivatives" / "truth" / "sub-01" / "dwi"
        for name in ("dseg", "desc-brain_mask"):
            save_image(truth / f"sub-01_{name}.nii.gz", voxels(1)[..., 0])
        return study.parents[2]

    @pytest.mark.parametrize("name", ["dseg", "desc-brain_mask"])
    def test_an_unfetched_label_or_mask_is_not_dropped(self, root, name):
        path = root / "derivatives" / "truth" / "sub-01" / "dwi" / f"sub-01_{name}.nii.gz"
        unfetch(path)
        for missing in ("error", "skip", "drop"):
            with pytest.raises(NotFetchedError, match=str(path)):
                data_list(root, labels={"label": "dseg"}, missing=missing)

    def test_training_names_the_unfetched_scan_before_it_starts(self, root):
        path = root / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"
        unfetch(path)
        with pytest.raises(NotFetchedError, match=str(path)):
            subjects(root, {"train": 1.0})

    def test_prediction_lists_the_unfetched_scan_so_that_the_others_are_done(self, root):
        unfetch(root / "sub-01" / "dwi" / "sub-01_dwi.nii.gz")
        write_scan(root / "sub-02" / "dwi" / "sub-02_dwi.nii.gz")
        assert [Path(item["image"]).name for item in scans(root)] == [
            "sub-01_dwi.nii.gz",
            "sub-02_dwi.nii.gz",
        ]

    @pytest.mark.parametrize("level", ["sub-02", "sub-01/ses-a", "sub-01/dwi"])
    def test_an_unfetched_folder_is_named(self, root, level):
        path = root / level
        if path.is_dir():
            path.rename(path.with_name("moved"))
        path.symlink_to("nowhere")
        with pytest.raises(NotFetchedError, match=str(path)):
            data_list(root)

    def test_an_unfetched_report_beside_the_subjects_does_not_matter(self, root):
        unfetch(root / "sub-01.html")
        assert len(data_list(root)) == 1

    def test_an_unfetched_table_in_a_plain_folder_does_not_hide_its_scan(self, tmp_path):
        image = write_scan(tmp_path / "scan.nii.gz")
        unfetch(tmp_path / "scan.bval")
        assert scans(tmp_path) == [{"image": str(image)}]

    def test_an_unfetched_file_of_hcp_is_named(self, tmp_path):
        folder = tmp_path / "100307" / "T1w" / "Diffusion"
        folder.mkdir(parents=True)
        for name in ("data.nii.gz", "bvals", "bvecs"):
            (folder / name).touch()
        unfetch(folder / "nodif_brain_mask.nii.gz")
        with pytest.raises(NotFetchedError, match="nodif_brain_mask"):
            hcp_list(tmp_path)


def test_a_single_unfetched_scan_or_map_is_named(tmp_path):
    path = tmp_path / "scan.nii.gz"
    unfetch(path)
    for read in (scans, read_nifti):
        with pytest.raises(NotFetchedError, match=str(path)):
            read(path)


def test_an_unfetched_checkpoint_or_its_settings_are_named(tmp_path):
    network, path = torch.nn.Linear(1, 1), tmp_path / "model.pt"
    unfetch(path)
    with pytest.raises(NotFetchedError, match="model.pt"):
        load_pretrained(network, path)
    path.unlink()
    torch.save(network.state_dict(), path)
    unfetch(tmp_path / "model.json")
    with pytest.raises(NotFetchedError, match="model.json"):
        load_pretrained(network, path)


@pytest.mark.parametrize("word", ["null", "none", "None", "", None])
def test_no_pretraining_can_be_said_on_the_command_line(word):
    network = torch.nn.Linear(1, 1)
    assert load_pretrained(network, word) is network


def test_a_folder_of_a_files_name_is_not_passed_over(study):
    study.with_name("sub-01_dwi.b").mkdir()
    with pytest.raises(OSError, match=r"sub-01_dwi\.b is a folder"):
        read_dwi(study)


def test_links_that_lead_somewhere_are_followed(tmp_path):
    image = write_scan(tmp_path / "store" / "scan.nii.gz")
    (tmp_path / "data").mkdir()
    for path in image.parent.iterdir():
        (tmp_path / "data" / path.name).symlink_to(path)
    assert len(read_dwi(tmp_path / "data" / "scan.nii.gz")[1]) == 8


def test_a_link_to_itself_is_an_error_naming_it(tmp_path):
    (tmp_path / "scan.nii.gz").symlink_to(tmp_path / "scan.nii.gz")
    with pytest.raises(NotFetchedError, match=r"scan\.nii\.gz"):
        required(tmp_path / "scan.nii.gz")


def test_a_name_too_long_for_the_file_system_does_not_exist(tmp_path):
    assert present(tmp_path / ("a" * 300)) is None


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        folders(tmp_path, "sub-")


@pytest.mark.parametrize("capitals", [False, True])
def test_a_scan_in_a_read_only_folder_is_read(tmp_path, capitals):
    image = write_scan(tmp_path / "in" / "scan.nii.gz")
    if capitals:
        for path in list(image.parent.iterdir()):
            path.rename(path.with_name(path.name.upper()))
        image = image.with_name("SCAN.NII.GZ")
    os.chmod(image.parent, 0o500)
    assert len(read_dwi(image)[1]) == 8
    os.chmod(image.parent, 0o700)
