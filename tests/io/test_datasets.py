"""Which files of a folder are scans to infer."""

import shutil
from pathlib import Path

import pytest

from dmri_monai.io.datasets import sample_subjects, scans, subjects
from dmri_monai.phantom import write_dataset


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
