import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from dmri_monai.io import read_dwi
from dmri_monai.phantom import Acquisition, make_subject, write_dataset

TINY = {"shape": (12, 14, 12), "spacing_mm": (10.0, 10.0, 10.0), "scheme": "clinical-32", "progress": False}
BIDS_NAME = re.compile(r"sub-\d+(_desc-brain)?_(dwi|dseg|lesion|npeaks|peaks|mask)\.(nii\.gz|bval|bvec|json)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("phantom") / "bids", subjects=2, seed=3, **TINY)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_same_seed_writes_the_same_bytes(folder, tmp_path):
    write_dataset(tmp_path, subjects=2, seed=3, **TINY)
    assert contents(folder) == contents(tmp_path)


def test_subject_does_not_depend_on_the_number_of_subjects(folder, tmp_path):
    write_dataset(tmp_path, subjects=1, seed=3, **TINY)
    alone = {k: v for k, v in contents(tmp_path).items() if "sub-01" in k}
    assert alone == {k: v for k, v in contents(folder).items() if "sub-01" in k}


def test_data_set_is_completed_where_subjects_are_missing(folder, tmp_path):
    write_dataset(tmp_path, subjects=1, seed=3, **TINY)
    first = tmp_path / "sub-01/dwi/sub-01_dwi.nii.gz"
    stamp = first.stat().st_mtime_ns
    write_dataset(tmp_path, subjects=2, seed=3, **TINY)
    assert contents(folder) == contents(tmp_path)
    assert first.stat().st_mtime_ns == stamp


def test_half_written_subject_is_written_again(folder, tmp_path):
    write_dataset(tmp_path, subjects=2, seed=3, **TINY)
    (tmp_path / "sub-02/dwi/sub-02_dwi.json").unlink()
    write_dataset(tmp_path, subjects=2, seed=3, **TINY)
    assert contents(folder) == contents(tmp_path)


def test_folder_of_another_phantom_is_refused(folder):
    with pytest.raises(FileExistsError, match="seed = 3, asked for 4"):
        write_dataset(folder, subjects=1, seed=4, **TINY)


def test_folder_of_a_run_that_failed_at_once_can_be_used_again(tmp_path):
    small = {"subjects": 1, "shape": (12, 14, 12), "spacing_mm": (10, 10, 10), "progress": False}
    with pytest.raises(ValueError, match="snr"):
        write_dataset(tmp_path / "data", snr=(0.0, 0.0), **small)
    assert (write_dataset(tmp_path / "data", snr=20.0, **small) / "sub-01").is_dir()


def test_folder_of_another_anatomy_is_refused_by_name(folder):
    with pytest.raises(FileExistsError, match="anatomy = procedural, asked for mni152"):
        write_dataset(folder, subjects=1, seed=3, **TINY | {"anatomy": "mni152"})


def test_impossible_options_leave_no_folder(tmp_path):
    with pytest.raises(ValueError, match="snr"):
        write_dataset(tmp_path / "data", subjects=1, snr=(30.0, 15.0), **TINY)
    assert not (tmp_path / "data").exists()


def test_numpy_values_are_the_same_phantom(folder, tmp_path):
    numbers = {"shape": np.array([12, 14, 12]), "spacing_mm": np.full(3, 10.0)}
    write_dataset(tmp_path, subjects=2, seed=np.int64(3), **TINY | numbers)
    assert contents(folder) == contents(tmp_path)


def test_columns_of_the_participants_are_described(folder):
    columns = (folder / "participants.tsv").read_text(encoding="utf-8").splitlines()[0].split("\t")
    assert set(json.loads((folder / "participants.json").read_text(encoding="utf-8"))) == set(columns[1:])
    assert "code/phantom.json" in (folder / "README").read_text(encoding="utf-8")


def test_folder_with_truth_of_another_phantom_is_refused(tmp_path):
    write_dataset(tmp_path, subjects=1, seed=3, **TINY)
    shutil.rmtree(tmp_path / "sub-01")  # as after a run that was killed while it wrote its first subject
    with pytest.raises(FileExistsError, match="seed = 3, asked for 4"):
        write_dataset(tmp_path, subjects=1, seed=4, **TINY)


def test_failed_run_of_another_anatomy_leaves_nothing_behind(folder, tmp_path):
    with pytest.raises(ValueError, match="snr"):
        write_dataset(tmp_path, subjects=2, seed=3, snr=(0.0, 0.0), **TINY | {"anatomy": "mni152"})
    write_dataset(tmp_path, subjects=2, seed=3, **TINY)
    assert contents(folder) == contents(tmp_path)


def test_changed_file_of_artifacts_is_another_phantom(tmp_path):
    preset = tmp_path / "mine.json"
    options = TINY | {"acquisition": Acquisition(artifacts=str(preset))}
    preset.write_text('{"artifacts": {"ghost": {"prob": 0.5}}}', encoding="utf-8")
    write_dataset(tmp_path / "data", subjects=1, **options)
    write_dataset(tmp_path / "data", subjects=1, **options)
    preset.write_text('{"artifacts": {"ghost": {"prob": 1.0}}}', encoding="utf-8")
    with pytest.raises(FileExistsError, match="artifacts"):
        write_dataset(tmp_path / "data", subjects=2, **options)


def test_folder_with_other_content_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="not empty"):
        write_dataset(tmp_path, subjects=1, **TINY)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_no_subjects_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="subjects: 0"):
        write_dataset(tmp_path / "out", subjects=0, **TINY)
    assert not (tmp_path / "out").exists()


def test_files_have_bids_names(folder):
    for path in folder.rglob("sub-*/dwi/*"):
        assert BIDS_NAME.fullmatch(path.name), path.name
        assert path.name.startswith(path.parent.parent.name)


@pytest.mark.parametrize("part", [".", "derivatives/ground-truth"], ids=["raw", "derivative"])
def test_data_set_descriptions_hold_what_bids_requires(folder, part):
    description = json.loads((folder / part / "dataset_description.json").read_text(encoding="utf-8"))
    assert {"Name", "BIDSVersion", "DatasetType"} <= description.keys()
    assert description["DatasetType"] == ("raw" if part == "." else "derivative")


def test_participants_table_names_every_subject(folder):
    rows = [
        line.split("\t") for line in (folder / "participants.tsv").read_text(encoding="utf-8").splitlines()
    ]
    assert rows[0][0] == "participant_id"
    assert [row[0] for row in rows[1:]] == ["sub-01", "sub-02"]


def test_every_image_of_a_subject_has_the_same_affine_and_grid(folder):
    images = [nibabel.load(p) for p in folder.rglob("sub-01_*.nii.gz")]
    assert len(images) == 6
    for image in images[1:]:
        assert image.shape[:3] == images[0].shape[:3]
        np.testing.assert_array_equal(image.affine, images[0].affine)


def test_scan_is_read_back_as_it_was_made(folder):
    made = make_subject((3, 1), **{k: v for k, v in TINY.items() if k != "progress"})
    image, table = read_dwi(folder / "sub-01/dwi/sub-01_dwi.nii.gz")
    torch.testing.assert_close(image.as_tensor(), made.image.as_tensor(), rtol=0, atol=0)
    torch.testing.assert_close(image.affine, made.affine, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(table.bvecs, made.table.bvecs, rtol=0, atol=1e-6)
    torch.testing.assert_close(table.bvals, made.table.bvals, rtol=0, atol=1e-6)


def test_labels_are_whole_numbers_of_their_table(folder):
    labels = nibabel.load(folder / "derivatives/ground-truth/sub-01/dwi/sub-01_dseg.nii.gz")
    rows = (folder / "derivatives/ground-truth/dseg.tsv").read_text(encoding="utf-8").splitlines()[1:]
    assert labels.get_data_dtype() == np.uint8
    assert {int(r.split("\t")[0]) for r in rows} == set(np.unique(labels.dataobj).tolist())


def test_peak_rule_stands_in_the_sidecar(folder):
    sidecar = json.loads(
        (folder / "derivatives/ground-truth/sub-01/dwi/sub-01_peaks.json").read_text(encoding="utf-8")
    )
    assert sidecar["PeakRule"] == {"MinimumFraction": 0.1, "MinimumAngleDeg": 25.0}


def test_loader_finds_the_acquisition_of_the_sidecar(folder):
    image, _ = read_dwi(folder / "sub-01/dwi/sub-01_dwi.nii.gz")
    axis = image.affine[:3, 1] / image.affine[:3, 1].norm()
    along = abs(float(image.meta["phase_encoding_world"].double() @ axis))
    assert along == pytest.approx(1.0, abs=1e-5)
    assert 0.03 < image.meta["total_readout_time_s"] < 0.1
    assert len(image.meta["slice_timing_s"]) == 12


def test_subjects_differ_in_affine_table_and_noise(folder):
    scans = [read_dwi(folder / f"sub-{i:02d}/dwi/sub-{i:02d}_dwi.nii.gz") for i in (1, 2)]
    assert not torch.equal(scans[0][0].affine, scans[1][0].affine)
    assert scans[0][1] != scans[1][1]
