"""Cases from files."""

from __future__ import annotations

import pytest
import torch

from dmri_monai.io import write_dwi, write_nifti
from dmri_monai.report import cases_from_folder, read_class_names, write_report
from tests.conftest import STANDARD_AFFINES
from tests.report.scenes import blob_at, fibres_along

AFFINE = STANDARD_AFFINES["oblique-right-iso2"]


@pytest.fixture
def folders(tmp_path):
    data, out = tmp_path / "bids", tmp_path / "bids" / "derivatives" / "predicted"
    truth = data / "derivatives" / "ground-truth"
    image, gradients = fibres_along((0, 1, 0), AFFINE)
    for name, shift in (("sub-01", 0.0), ("sub-02", 4.0)):
        write_dwi(data / name / f"{name}_dwi.nii.gz", image, gradients)
        write_nifti(truth / f"{name}_dseg.nii.gz", blob_at((0, 0, 0), AFFINE).byte(), AFFINE)
        write_nifti(out / f"{name}_dseg.nii.gz", blob_at((shift, 0, 0), AFFINE).byte(), AFFINE)
    (out / "dseg.tsv").write_text("index\tname\n0\tbackground\n1\tblob\n")
    return out, data


def test_a_folder_of_label_maps_finds_scans_truth_and_names(folders):
    cases = cases_from_folder(*folders)
    assert [c.name for c in cases] == ["sub-01", "sub-02"]
    assert [list(c.metrics) for c in cases] == [["Dice blob"]] * 2
    first, second = blob_at((0, 0, 0), AFFINE), blob_at((4, 0, 0), AFFINE)
    dice = 2 * float((first * second).sum()) / float(first.sum() + second.sum())
    assert [c.metrics["Dice blob"] for c in cases] == pytest.approx([1.0, dice])


def test_its_report_can_be_written(folders, tmp_path):
    html = write_report(tmp_path / "r.html", cases_from_folder(*folders), title="t").read_text()
    assert html.count('<details class="card case"') == 2


def test_a_missing_scan_is_named(folders):
    out, data = folders
    (data / "sub-02" / "sub-02_dwi.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match="no sub-02_dwi.nii.gz"):
        cases_from_folder(out, data)


def test_a_folder_without_label_maps_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no \*_dseg.nii.gz in"):
        cases_from_folder(tmp_path, tmp_path)


def test_a_broken_name_table_is_named(tmp_path):
    table = tmp_path / "dseg.tsv"
    table.write_text("index\tname\nx\tblob\n")
    with pytest.raises(ValueError, match=r"expected the columns index .*dseg\.tsv"):
        read_class_names(table)


def test_a_label_map_of_many_volumes_is_refused(folders):
    out, data = folders
    write_nifti(out / "sub-01_dseg.nii.gz", torch.zeros(2, 4, 4, 4), AFFINE)
    with pytest.raises(ValueError, match="label map has 2 volumes, expected 1"):
        cases_from_folder(out, data)
