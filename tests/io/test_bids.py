"""Data sets on disk become lists of items; splits go by subject."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dmri_monai.io.bids import data_list
from dmri_monai.io.bids_names import parse_filters
from dmri_monai.io.hcp import hcp_list
from dmri_monai.io.splits import split, split_fold


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def root(tmp_path):
    """Two subjects; the second with two sessions, one of them with two runs; labels for all, a mask for one."""
    truth = tmp_path / "derivatives" / "ground-truth"
    for stem in (
        "sub-01/dwi/sub-01",
        *(f"sub-02/ses-{s}/dwi/sub-02_ses-{s}_run-{r}" for s, r in ("a1", "a2", "b1")),
    ):
        touch(tmp_path / f"{stem}_dwi.nii.gz", truth / f"{stem}_dseg.nii.gz")
    touch(truth / "sub-01/dwi/sub-01_desc-brain_mask.nii.gz", tmp_path / "sub-01/dwi/sub-01_sbref.nii.gz")
    return tmp_path


def items_of(n: int, runs: int = 2) -> list[dict[str, str]]:
    return [
        {"subject": f"{s:02d}", "run": str(r), "image": f"{s}-{r}"} for s in range(n) for r in range(runs)
    ]


class TestDataList:
    def test_every_session_and_run_is_an_item(self, root):
        found = [(item["subject"], item["session"], item["run"]) for item in data_list(root)]
        assert found == [("01", "", ""), ("02", "a", "1"), ("02", "a", "2"), ("02", "b", "1")]

    def test_labels_and_masks_are_those_of_the_scan(self, root):
        items = data_list(root, labels={"label": "dseg"})
        truth = root / "derivatives" / "ground-truth"
        assert items[0]["label"] == str(truth / "sub-01/dwi/sub-01_dseg.nii.gz")
        assert items[2]["label"] == str(truth / "sub-02/ses-a/dwi/sub-02_ses-a_run-2_dseg.nii.gz")
        assert [("mask" in item) for item in items] == [True, False, False, False]

    def test_of_several_endings_the_first_that_is_there_is_the_label(self, root):
        truth = root / "derivatives" / "ground-truth" / "sub-01" / "dwi"
        touch(truth / "sub-01_peaks.nii.gz")
        items = data_list(root, labels={"label": ("fod", "peaks", "dseg")})
        assert [Path(item["label"]).name for item in items[:2]] == [
            "sub-01_peaks.nii.gz", "sub-02_ses-a_run-1_dseg.nii.gz",
        ]  # fmt: skip
        touch(truth / "sub-01_fod.nii.gz")
        assert data_list(root, labels={"label": ("fod", "peaks")}, missing="drop")[0]["label"].endswith(
            "_fod.nii.gz"
        )
        with pytest.raises(FileNotFoundError, match=r"no sub-01_nothing.nii.gz"):
            data_list(root, labels={"label": ("nothing", "other")})

    def test_a_preprocessed_scan_finds_the_mask_beside_it(self, tmp_path):
        stem = tmp_path / "sub-01" / "dwi" / "sub-01"
        touch(Path(f"{stem}_desc-preproc_dwi.nii.gz"), Path(f"{stem}_desc-brain_mask.nii.gz"))
        assert data_list(tmp_path)[0]["mask"] == f"{stem}_desc-brain_mask.nii.gz"

    @pytest.mark.parametrize("name", ["ground-truth", "absolute"])
    def test_the_derivatives_folder_can_be_named(self, root, name):
        touch(root / "derivatives" / "other" / "sub-01/dwi/sub-01_dseg.nii.gz")
        folder = root / "derivatives" / "ground-truth"
        given = folder if name == "absolute" else name
        assert data_list(root, derivatives=given, labels={"label": "dseg"})[0]["label"].startswith(
            str(folder)
        )

    def test_one_label_in_two_derivatives_is_an_error_naming_both(self, root):
        touch(root / "derivatives" / "other" / "sub-01/dwi/sub-01_dseg.nii.gz")
        with pytest.raises(ValueError, match="(?s)both .*ground-truth.* and .*other.*sub-01_dseg"):
            data_list(root, labels={"label": "dseg"})

    def test_phase_images_are_passed_over(self, root):
        touch(root / "sub-01/dwi/sub-01_part-phase_dwi.nii.gz")
        assert len(data_list(root)) == 4

    def test_several_items_of_unlike_entities_have_the_same_keys(self, root):
        assert {tuple(sorted(set(item) - {"mask"})) for item in data_list(root)} == {
            ("image", "run", "session", "subject")
        }


class TestNames:
    def test_scans_are_found_whatever_the_case_of_the_ending(self, tmp_path):
        touch(tmp_path / "sub-01/dwi/sub-01_dwi.NII.GZ", tmp_path / "sub-02/dwi/sub-02_dwi.NII")
        assert [item["subject"] for item in data_list(tmp_path)] == ["01", "02"]

    def test_references_and_other_images_beside_the_scan_are_passed_over(self, root):
        dwi = root / "sub-01" / "dwi"
        touch(*(dwi / f"sub-01_{name}.nii.gz" for name in ("sbref", "part-real_dwi", "part-imag_dwi", "ADC")))
        touch(dwi / ".hidden_dwi.nii.gz", root / "sub-01" / "dwi2" / "sub-01_run-9_dwi.nii.gz")
        assert len(data_list(root)) == 4

    def test_a_magnitude_takes_the_labels_of_the_scan(self, tmp_path):
        stem = tmp_path / "sub-01" / "dwi" / "sub-01"
        touch(
            Path(f"{stem}_part-mag_dwi.nii.gz"),
            Path(f"{stem}_part-phase_dwi.nii.gz"),
            Path(f"{stem}_dseg.nii.gz"),
        )
        (item,) = data_list(tmp_path, labels={"label": "dseg"})
        assert item["label"] == f"{stem}_dseg.nii.gz"

    def test_a_folder_of_derivatives_is_a_data_set(self, tmp_path):
        """As QSIPrep lays it out, beside its reports and figures."""
        root = tmp_path / "derivatives" / "qsiprep"
        stem = root / "sub-01" / "ses-a" / "dwi" / "sub-01_ses-a_space-T1w"
        touch(Path(f"{stem}_desc-preproc_dwi.nii.gz"), Path(f"{stem}_desc-brain_mask.nii.gz"))
        touch(Path(f"{stem}_dwiref.nii.gz"), root / "sub-01.html", root / "sub-01" / "figures" / "a.svg")
        (item,) = data_list(root)
        assert item["image"].endswith("sub-01_ses-a_space-T1w_desc-preproc_dwi.nii.gz")
        assert item["mask"] == f"{stem}_desc-brain_mask.nii.gz"
        assert item["session"] == "a"


class TestFilters:
    @pytest.fixture
    def root(self, tmp_path):
        names = ["dir-AP_run-01", "dir-PA_run-01", "dir-AP_run-02", "acq-hi_dir-AP_run-01"]
        touch(*(tmp_path / f"sub-01/dwi/sub-01_{name}_dwi.nii.gz" for name in names))
        touch(tmp_path / "sub-02/dwi/sub-02_dir-AP_dwi.nii.gz")
        return tmp_path

    @pytest.mark.parametrize(
        ("filters", "count"),
        [
            ({}, 5),
            ({"dir": "AP"}, 4),
            ({"direction": "PA"}, 1),
            ({"dir": ["AP", "PA"], "run": 1}, 3),
            ({"run": "1"}, 3),
            ({"run": None}, 1),
            ({"acq": None, "dir": "AP"}, 3),
            ({"subject": "02"}, 1),
            ({"sub": "2"}, 1),
        ],
        ids=str,
    )
    def test_entities_choose_the_scans(self, root, filters, count):
        assert len(data_list(root, filters=filters)) == count

    def test_a_filter_that_nothing_passes_names_what_there_is(self, root):
        with pytest.raises(
            ValueError, match="no scan passes .*'LR'.* there are acq-hi, dir-AP, dir-PA, run-01"
        ):
            data_list(root, filters={"dir": "LR"})

    def test_words_of_a_command_line_are_filters(self):
        assert parse_filters("dir=AP,run=1") == {"dir": ["AP"], "run": ["1"]}
        for word in ("dir", "dir=", "=AP", ""):
            with pytest.raises(ValueError, match="expected entity=value"):
                parse_filters([word])

    def test_labels_are_needed_for_the_chosen_scans_alone(self, root):
        touch(root / "sub-02/dwi/sub-02_dir-AP_dseg.nii.gz")
        assert len(data_list(root, labels={"label": "dseg"}, filters={"sub": "02"})) == 1
        with pytest.raises(FileNotFoundError, match="dseg"):
            data_list(root, labels={"label": "dseg"})


class TestMissingLabels:
    @pytest.fixture
    def incomplete(self, root):
        (root / "derivatives/ground-truth/sub-02/ses-a/dwi/sub-02_ses-a_run-2_dseg.nii.gz").unlink()
        return root

    def test_they_are_an_error_naming_the_file_and_the_folder(self, incomplete):
        match = r"no sub-02_ses-a_run-2_dseg\.nii\.gz for .*sub-02_ses-a_run-2_dwi\.nii\.gz in .*ground-truth"
        with pytest.raises(FileNotFoundError, match=match):
            data_list(incomplete, labels={"label": "dseg"})

    def test_they_can_be_left_out(self, incomplete):
        items = data_list(incomplete, labels={"label": "dseg"}, missing="skip")
        assert [("label" in item) for item in items] == [True, True, False, True]

    def test_their_scans_can_be_dropped(self, incomplete):
        assert len(data_list(incomplete, labels={"label": "dseg"}, missing="drop")) == 3

    def test_dropping_everything_is_an_error(self, root):
        with pytest.raises(ValueError, match="no scan with tracts in"):
            data_list(root, labels={"label": "tracts"}, missing="drop")


class TestErrors:
    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(NotADirectoryError, match="nowhere"):
            data_list(tmp_path / "nowhere")

    def test_a_folder_without_subjects_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=rf"no sub-<label> folder in {tmp_path}"):
            data_list(tmp_path)

    def test_subjects_without_scans_are_an_error(self, tmp_path):
        touch(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
        with pytest.raises(ValueError, match=r"no .*_dwi\.nii\.gz in"):
            data_list(tmp_path)

    def test_a_file_in_the_folder_of_another_subject_is_an_error(self, root):
        touch(root / "sub-01" / "dwi" / "sub-03_dwi.nii.gz")
        with pytest.raises(ValueError, match="file name says sub-03, folder sub-01"):
            data_list(root)

    def test_a_scan_stored_twice_is_an_error(self, root):
        touch(root / "sub-01" / "dwi" / "sub-01_dwi.nii")
        with pytest.raises(ValueError, match=r"both .*sub-01_dwi\.nii"):
            data_list(root)

    def test_a_missing_derivatives_folder_is_named(self, root):
        with pytest.raises(NotADirectoryError, match="no-such"):
            data_list(root, derivatives="no-such")


class TestHcp:
    @pytest.fixture
    def hcp(self, tmp_path):
        for subject in ("100307", "100408"):
            folder = tmp_path / subject / "T1w" / "Diffusion"
            touch(*(folder / name for name in ("data.nii.gz", "bvals", "bvecs")))
        touch(tmp_path / "100307/T1w/Diffusion/nodif_brain_mask.nii.gz", tmp_path / "docs" / "readme.txt")
        return tmp_path

    def test_subjects_and_masks_are_listed(self, hcp):
        items = hcp_list(hcp)
        assert [item["subject"] for item in items] == ["100307", "100408"]
        assert [("mask" in item) for item in items] == [True, False]

    @pytest.mark.parametrize("name", ["data.nii.gz", "bvals", "bvecs"])
    def test_a_missing_file_is_named(self, hcp, name):
        (hcp / "100408" / "T1w" / "Diffusion" / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"no {name} in .*100408"):
            hcp_list(hcp)

    def test_another_folder_is_an_error(self, tmp_path):
        with pytest.raises(ValueError, match="no <subject>/T1w/Diffusion folder"):
            hcp_list(tmp_path)


class TestSplit:
    FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}

    def test_all_runs_of_a_subject_are_in_one_part(self):
        parts = split(items_of(10, runs=3), self.FRACTIONS)
        subjects = [{item["subject"] for item in part} for part in parts.values()]
        assert [len(s) for s in subjects] == [6, 2, 2]
        assert len(set.union(*subjects)) == 10

    def test_the_order_of_items_does_not_matter(self):
        shuffled = items_of(10)
        random.Random(1).shuffle(shuffled)
        for name, part in split(items_of(10), self.FRACTIONS).items():
            again = split(shuffled, self.FRACTIONS)[name]
            assert {item["image"] for item in part} == {item["image"] for item in again}

    def test_the_seed_draws_the_parts(self):
        draws = {
            tuple(i["subject"] for i in split(items_of(10), self.FRACTIONS, seed=s)["test"]) for s in range(5)
        }
        assert len(draws) > 1
        assert split(items_of(10), self.FRACTIONS, seed=3) == split(items_of(10), self.FRACTIONS, seed=3)

    @pytest.mark.parametrize("count", range(3, 24))
    def test_every_part_has_a_subject_and_nobody_is_lost(self, count):
        sizes = {name: len(part) for name, part in split(items_of(count, runs=1), self.FRACTIONS).items()}
        assert min(sizes.values()) >= 1
        assert sum(sizes.values()) == count
        assert all(abs(sizes[name] - share * count) <= 1 for name, share in self.FRACTIONS.items())

    def test_a_share_of_zero_is_an_empty_part(self):
        assert split(items_of(3), {"train": 1.0, "val": 0.0})["val"] == []

    @pytest.mark.parametrize("fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}], ids=repr)
    def test_shares_that_do_not_sum_to_one_are_refused(self, fractions):
        with pytest.raises(ValueError, match="sum to 1"):
            split(items_of(4), fractions)

    def test_more_parts_than_subjects_are_refused(self):
        with pytest.raises(ValueError, match="2 subjects cannot be split into 3 parts"):
            split(items_of(2), self.FRACTIONS)


class TestFolds:
    def test_every_subject_is_tested_once(self):
        tested = [item["image"] for k in range(7) for item in split_fold(items_of(28), k, 7)["test"]]
        assert sorted(tested) == sorted(item["image"] for item in items_of(28))

    def test_parts_of_a_fold_share_no_subject(self):
        parts = split_fold(items_of(11), 2, 4)
        subjects = [{item["subject"] for item in part} for part in parts.values()]
        assert sum(len(s) for s in subjects) == len(set.union(*subjects)) == 11

    def test_without_a_seed_fold_k_tests_the_kth_group_and_validates_on_the_next(self):
        parts = split_fold(items_of(28, runs=1), 6, 7, seed=None)
        assert [item["subject"] for item in parts["test"]] == ["24", "25", "26", "27"]
        assert [item["subject"] for item in parts["val"]] == ["00", "01", "02", "03"]

    @pytest.mark.parametrize(
        ("fold", "n_folds", "match"), [(0, 2, "n_folds"), (0, 9, "n_folds"), (5, 5, "fold is 5")]
    )
    def test_impossible_folds_are_refused(self, fold, n_folds, match):
        with pytest.raises(ValueError, match=match):
            split_fold(items_of(8), fold, n_folds)
