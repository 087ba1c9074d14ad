"""Which files of a folder are scans to infer."""

import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from dmri_monai.io.datasets import sample_subjects, scans, subjects
from dmri_monai.phantom import write_dataset
from tests.io.scans import rows, save_image, voxels, write_scan


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scans") / "data"
    write_dataset(out, subjects=1, seed=0, shape=(6, 6, 6), spacing_mm=(20.0, 20.0, 20.0), progress=False)
    return out / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"


def hcp(scan, folder) -> Path:
    """An HCP folder with its 3-D mask, which the names of its table fit as well."""
    folder.mkdir(parents=True)
    shutil.copyfile(scan, folder / "data.nii.gz")
    mask = next((scan.parents[2] / "derivatives").rglob("*brain_mask.nii.gz"))
    shutil.copyfile(mask, folder / "nodif_brain_mask.nii.gz")
    for ending in ("bval", "bvec"):
        shutil.copyfile(str(scan).replace("nii.gz", ending), folder / f"{ending}s")
    return folder


def test_mask_beside_a_table_is_not_a_scan(scan, tmp_path):
    folder = hcp(scan, tmp_path / "T1w" / "Diffusion")
    assert scans(folder) == [{"image": str(folder / "data.nii.gz")}]


def test_subjects_of_an_hcp_data_set_are_found(scan, tmp_path):
    folder = hcp(scan, tmp_path / "100307" / "T1w" / "Diffusion")
    assert scans(tmp_path) == [{"image": str(folder / "data.nii.gz"), "subject": "100307"}]


def test_folder_of_one_subject_holds_its_scan(scan):
    assert scans(scan.parent) == [{"image": str(scan)}]


def test_scan_of_a_data_set_has_its_truth(scan):
    item = scans(scan.parents[2], label="dseg")[0]
    assert item["image"] == str(scan)
    assert item["label_path"].endswith("sub-01_dseg.nii.gz")


def test_folder_without_scans_is_named(tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        scans(tmp_path)


def test_part_that_the_split_does_not_have_is_named(scan, tmp_path):
    for name in ("100307", "100408"):
        hcp(scan, tmp_path / name / "T1w" / "Diffusion")
    parts = subjects(tmp_path, {"train": 0.5, "val": 0.5}, layout="hcp")
    assert [len(parts[name]) for name in ("train", "val")] == [1, 1]
    with pytest.raises(ValueError, match="the split has no part 'test', only train, val"):
        parts["test"]


class TestRunsWithoutWeighting:
    """A reverse-phase run of b0 volumes beside every scan, as distortion correction wants them."""

    @pytest.fixture
    def root(self, tmp_path):
        for subject in ("01", "02"):
            folder = tmp_path / f"sub-{subject}" / "dwi"
            write_scan(folder / f"sub-{subject}_dir-AP_dwi.nii.gz")
            save_image(folder / f"sub-{subject}_dir-AP_dseg.nii.gz", voxels(1)[..., 0])
            self.b0_run(folder / f"sub-{subject}_dir-PA_dwi.nii.gz", [0, 5, 5])
        return tmp_path

    def b0_run(self, path, bvals):
        save_image(path, voxels(len(bvals)))
        stem = path.name.removesuffix(".nii.gz")
        path.with_name(f"{stem}.bval").write_text(rows(np.array(bvals, dtype=float)))
        path.with_name(f"{stem}.bvec").write_text(rows(np.zeros((3, len(bvals)))))

    def test_training_leaves_them_out_with_a_line_in_the_log(self, root, caplog):
        with caplog.at_level(logging.WARNING):
            (items,) = subjects(root, {"train": 1.0}, labels={"label": "dseg"}).values()
        assert [Path(item["image"]).name for item in items] == [f"sub-0{i}_dir-AP_dwi.nii.gz" for i in (1, 2)]
        line = r"sub-01_dir-PA_dwi\.nii\.gz has no diffusion weighting .* highest b is 5, b0_threshold is 50"
        assert re.search(line, caplog.text)

    def test_prediction_leaves_them_out_of_a_folder_but_takes_one_that_is_named(self, root, caplog):
        assert len(scans(root)) == 2
        assert "sub-02_dir-PA" in caplog.text
        folder = root / "sub-01" / "dwi"
        assert [Path(item["image"]).name for item in scans(folder)] == ["sub-01_dir-AP_dwi.nii.gz"]
        assert len(scans(folder / "sub-01_dir-PA_dwi.nii.gz")) == 1

    def test_a_single_volume_without_table_is_one(self, root):
        for path in root.rglob("*dir-PA*.bv*"):
            path.unlink()
        save_image(root / "sub-01/dwi/sub-01_dir-PA_dwi.nii.gz", voxels(1)[..., 0])
        save_image(root / "sub-02/dwi/sub-02_dir-PA_dwi.nii.gz", voxels(1))
        assert len(subjects(root, {"train": 1.0})["train"]) == 2

    def test_many_volumes_without_table_are_a_scan_that_lacks_it(self, root):
        for path in root.rglob("sub-01_dir-AP*.bv*"):
            path.unlink()
        with pytest.raises(FileNotFoundError, match="no b-values .*sub-01_dir-AP_dwi"):
            subjects(root, {"train": 1.0})
        assert len(scans(root)) == 2

    def test_the_threshold_decides(self, root):
        assert len(subjects(root, {"train": 1.0}, b0_threshold=2)["train"]) == 4

    def test_a_data_set_of_them_alone_is_an_error(self, tmp_path):
        self.b0_run(tmp_path / "sub-01" / "dwi" / "sub-01_dwi.nii.gz", [0, 0])
        with pytest.raises(ValueError, match=rf"no scan with diffusion weighting in {tmp_path}"):
            subjects(tmp_path, {"train": 1.0})

    @pytest.mark.parametrize("filters", [{"dir": "PA"}, "dir=PA"], ids=str)
    def test_filters_are_taken_as_a_mapping_or_as_text(self, root, filters):
        items = subjects(root, {"train": 1.0}, filters=filters, b0_threshold=2)["train"]
        assert ["dir-PA" in item["image"] for item in items] == [True, True]
        assert len(scans(root, filters=filters, b0_threshold=2)) == 2

    def test_a_broken_scan_does_not_hide_the_others_from_prediction(self, root):
        (root / "sub-01/dwi/sub-01_dir-AP_dwi.bval").write_text("nonsense")
        (root / "sub-02/dwi/sub-02_dir-AP_dwi.nii.gz").write_bytes(b"")
        assert len(scans(root, filters={"dir": "AP"})) == 2
        assert len(scans(root / "sub-02" / "dwi")) == 1
        with pytest.raises(ValueError, match="sub-01_dir-AP_dwi.bval"):
            subjects(root, {"train": 1.0})


SESSIONS = [
    {"subject": name, "image": f"{name}-{i}"} for i, name in enumerate(["01", "01", "02", "03", "03"])
]


@pytest.mark.parametrize("count", [1, 2, 3, None])
def test_drawn_subjects_keep_all_their_scans_and_their_order(count):
    found = sample_subjects(SESSIONS, count, seed=3)
    names = {item["subject"] for item in found}
    assert len(names) == (count or 3)
    assert found == [item for item in SESSIONS if item["subject"] in names]


def test_seed_draws_the_subjects_and_a_smaller_draw_lies_within_a_larger_one():
    items = [{"subject": f"{i:02d}", "image": f"{i}"} for i in range(40)]
    drawn = {
        (n, s): {item["subject"] for item in sample_subjects(items, n, s)}
        for n in (2, 4, 20)
        for s in range(3)
    }
    assert all(drawn[2, s] < drawn[4, s] < drawn[20, s] for s in range(3))
    assert len({frozenset(drawn[2, s]) for s in range(3)}) == 3
    assert sample_subjects(items[::-1], 4, 1) == sample_subjects(items, 4, 1)[::-1]


@pytest.mark.parametrize("count", [0, -1, 4])
def test_number_of_subjects_that_there_are_not_is_named_with_both(count):
    with pytest.raises(ValueError, match=f"asked for {count} subjects, there are 3"):
        sample_subjects(SESSIONS, count)
