"""Cases from files."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from dmri_monai.cli import app
from dmri_monai.io import write_dwi, write_nifti
from dmri_monai.qspace.conventions import to_basis
from dmri_monai.qspace.fibre_density import density_of_peaks
from dmri_monai.report import cases_from_folder, read_class_names, write_report
from dmri_monai.tasks import find_task
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
    (out / "dseg.tsv").write_text("index\tname\n0\tbackground\n1\tblob\n", encoding="utf-8")
    return out, data


def test_a_folder_of_label_maps_finds_scans_truth_and_names(folders):
    cases = cases_from_folder(*folders)
    assert [c.name for c in cases] == ["sub-01", "sub-02"]
    assert [list(c.metrics) for c in cases] == [["Dice blob"]] * 2
    first, second = blob_at((0, 0, 0), AFFINE), blob_at((4, 0, 0), AFFINE)
    dice = 2 * float((first * second).sum()) / float(first.sum() + second.sum())
    assert [c.metrics["Dice blob"] for c in cases] == pytest.approx([1.0, dice])


def test_its_report_can_be_written(folders, tmp_path):
    html = write_report(tmp_path / "r.html", cases_from_folder(*folders), title="t").read_text(
        encoding="utf-8"
    )
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
    table.write_text("index\tname\nx\tblob\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected the columns index .*dseg\.tsv"):
        read_class_names(table)


def test_a_map_that_is_neither_labels_nor_peaks_is_refused(folders):
    out, data = folders
    write_nifti(out / "sub-01_dseg.nii.gz", torch.zeros(2, 4, 4, 4), AFFINE)
    with pytest.raises(ValueError, match="map has 2 volumes, expected 1 .labels. or 3 per peak"):
        cases_from_folder(out, data)


def test_peaks_are_compared_by_their_angle_and_drawn(folders, tmp_path):
    out, data = folders
    along = torch.zeros(3, *blob_at((0, 0, 0), AFFINE).shape)
    along[1] = 0.5 * blob_at((0, 0, 0), AFFINE)
    turned = along.clone()
    turned[0] = along[1] * 3**0.5  # by 60 degrees
    for name in ("sub-01", "sub-02"):
        write_nifti(out / f"{name}_peaks.nii.gz", along, AFFINE)
        write_nifti(data / "derivatives" / "ground-truth" / f"{name}_peaks.nii.gz", turned, AFFINE)
    cases = cases_from_folder(out, data, suffix="peaks")
    assert cases[0].metrics["Median angle (°)"] == pytest.approx(60, abs=0.1)
    html = write_report(tmp_path / "r.html", cases, title="t").read_text(encoding="utf-8")
    assert html.count("prediction as sticks") == html.count("ground truth as sticks") == 2 * 3


def test_a_density_is_drawn_as_its_peaks_and_fractions_as_the_largest(folders, tmp_path):
    out, data = folders
    inside = blob_at((0, 0, 0), AFFINE) > 0.5
    along = torch.zeros(3, *inside.shape)
    along[1] = 0.8 * inside
    density = to_basis(density_of_peaks(along), "tournier07", legacy=False)
    fractions = torch.stack([0.2 * inside, 0.7 * inside, 0.1 * inside]).float()
    for name in ("sub-01", "sub-02"):
        write_nifti(out / f"{name}_fod.nii.gz", density, AFFINE)
        write_nifti(out / f"{name}_probseg.nii.gz", fractions, AFFINE)
    options = {"shown": find_task("fod").output.shown_label}
    drawn = torch.as_tensor(cases_from_folder(out, data, suffix="fod", **options)[0].prediction)
    first = drawn[:3, inside].nan_to_num()
    torch.testing.assert_close(first[1].abs() / first.norm(dim=0), torch.ones(int(inside.sum())))
    assert not drawn[:, ~inside].nan_to_num().any()
    options = {"shown": find_task("fractions").output.shown_label}
    largest = torch.as_tensor(cases_from_folder(out, data, suffix="probseg", **options)[0].prediction)
    assert torch.equal(largest[0] == 2, inside)
    arguments = ["report", out, "--data", data, "--suffix", "fod", "--out", tmp_path / "r.html"]
    result = CliRunner().invoke(app, [str(part) for part in arguments])
    assert result.exit_code == 0, result.output
    assert "prediction as sticks" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_an_uncertainty_beside_the_prediction_is_shown(folders, tmp_path):
    out, data = folders
    shape = blob_at((0, 0, 0), AFFINE).shape
    write_nifti(out / "sub-01_dseguncertainty.nii.gz", torch.full(shape, 0.25), AFFINE)
    first, second = cases_from_folder(out, data)
    assert list(first.maps) == ["Uncertainty"]
    assert not second.maps
    assert "Uncertainty, 0 to 0.25" in write_report(tmp_path / "r.html", [first], title="t").read_text(
        encoding="utf-8"
    )
