"""The JSON sidecar: acquisition directions as world vectors, and the numbers beside them."""

from __future__ import annotations

import json
import re

import nibabel
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dmri_monai.io import read_dwi
from dmri_monai.io.json_sidecar import read_json
from dmri_monai.training.pretext import scan_meta
from dmri_monai.transforms import RandDWIArtifactsd
from tests.io.scans import write_scan

KEYS = {"phase_encoding_world", "slice_world", "total_readout_time_s", "slice_timing_s", "multiband_factor"}


@pytest.fixture
def scan(tmp_path, standard_affine):
    return write_scan(tmp_path / "dwi.nii.gz", affine=standard_affine)


def meta_of(path, content):
    path.with_name("dwi.json").write_text(json.dumps(content))
    return read_dwi(path)[0].meta


@pytest.mark.parametrize(
    ("code", "axis", "sign"),
    [("i", 0, 1), ("i-", 0, -1), ("j", 1, 1), ("j-", 1, -1), ("k", 2, 1), ("k-", 2, -1)],
)
def test_directions_are_world_vectors_of_the_files_own_axes(scan, standard_affine, code, axis, sign):
    meta = {**meta_of(scan, {"PhaseEncodingDirection": code}), "slice_world": None}
    meta["slice_world"] = meta_of(scan, {"SliceEncodingDirection": code})["slice_world"]
    # independent: where one more voxel along the axis lies
    step = torch.from_numpy(nibabel.affines.apply_affine(standard_affine.numpy(), np.eye(3)[axis]))
    expected = sign * (step - standard_affine[:3, 3])
    expected = (expected / expected.norm()).float()
    assert_close(meta["phase_encoding_world"], expected)
    assert_close(meta["slice_world"], expected)


class TestOneGrid:
    @pytest.fixture
    def scan(self, tmp_path):
        return write_scan(tmp_path / "dwi.nii.gz")

    def test_numbers_are_passed_on(self, scan):
        content = {"TotalReadoutTime": 0.05, "MultibandAccelerationFactor": 3, "SliceTiming": [0.0, 0.7, 0.7]}
        meta = meta_of(scan, content)
        assert meta["total_readout_time_s"] == 0.05
        assert meta["multiband_factor"] == 3
        assert_close(meta["slice_timing_s"], torch.tensor([0.0, 0.7, 0.7]))

    def test_slice_timing_without_a_direction_means_k(self, scan):
        assert_close(meta_of(scan, {"SliceTiming": [0, 1, 2]})["slice_world"], torch.tensor([0.0, 0, 1]))

    def test_the_slice_axis_of_the_header_counts_before_k(self, scan):
        image = nibabel.load(scan)
        image.header.set_dim_info(freq=0, phase=2, slice=1)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header), scan)
        meta = meta_of(scan, {"SliceTiming": [0, 1, 2, 3]})
        assert_close(meta["slice_world"], torch.tensor([0.0, 1, 0]))
        assert len(meta["slice_timing_s"]) == 4

    def test_only_known_keys_are_set(self, scan):
        assert not KEYS & set(read_dwi(scan)[0].meta)
        assert set(meta_of(scan, {"TotalReadoutTime": 0.1, "EchoTime": 0.08})) & KEYS == {
            "total_readout_time_s"
        }

    def test_null_means_unknown(self, scan):
        assert not KEYS & set(meta_of(scan, dict.fromkeys(["PhaseEncodingDirection", "SliceTiming"])))

    @pytest.mark.parametrize(
        ("content", "match"),
        [
            pytest.param(
                {"PhaseEncodingDirection": "AP"}, "PhaseEncodingDirection is 'AP', expected one of i", id="AP"
            ),
            pytest.param({"PhaseEncodingDirection": "-j"}, "is '-j', expected one of", id="leading-sign"),
            pytest.param({"SliceEncodingDirection": 2}, "SliceEncodingDirection is 2", id="number"),
            pytest.param(
                {"TotalReadoutTime": 0},
                "TotalReadoutTime is 0, expected a number of seconds above 0",
                id="zero",
            ),
            pytest.param({"TotalReadoutTime": True}, "TotalReadoutTime is True", id="bool"),
            pytest.param({"TotalReadoutTime": float("nan")}, "TotalReadoutTime is nan", id="nan"),
            pytest.param({"TotalReadoutTime": 10**400}, "TotalReadoutTime is 1000", id="huge"),
            pytest.param(
                {"MultibandAccelerationFactor": -2}, "MultibandAccelerationFactor is -2", id="negative"
            ),
            pytest.param(
                {"SliceTiming": [0, 1]}, "SliceTiming is .*it has 2 entries for 3 slices", id="timing-count"
            ),
            pytest.param({"SliceTiming": [0, 1, "2"]}, "SliceTiming is .*entry 2 is '2'", id="timing-text"),
            pytest.param({"SliceTiming": 0.1}, r"SliceTiming is 0\.1, expected a list", id="timing-number"),
            pytest.param({"TotalReadoutTime": 50}, "is 50, .*look like milliseconds", id="readout-ms"),
            pytest.param({"PhaseEncodingDirection": ""}, "is '', expected one of i", id="empty"),
            pytest.param(
                {"MultibandAccelerationFactor": 2.5}, "is 2.5, expected a whole number", id="fractional"
            ),
            pytest.param(
                {"SliceTiming": [0, 1500, 700], "RepetitionTime": 3.2},
                "up to 1500 beside RepetitionTime 3.2 s: these look like milliseconds",
                id="timing-ms",
            ),
            pytest.param(
                {"SliceTiming": [0, 3.4, 0.7], "RepetitionTime": 3.2},
                "up to 3.4 beside RepetitionTime 3.2 s, which no slice can lie beyond",
                id="timing-beyond",
            ),
            pytest.param({"SliceTiming": [0, 1500, 700]}, "look like milliseconds", id="timing-ms-alone"),
        ],
    )
    def test_a_wrong_entry_is_left_out_named_with_its_value_and_file(self, scan, content, match):
        right = {"MultibandAccelerationFactor": 3} if "MultibandAccelerationFactor" not in content else {}
        with pytest.warns(UserWarning, match=rf"{match}.*left out: .*dwi\.json"):
            meta = meta_of(scan, {**content, **right})
        assert set(meta) & KEYS == ({"multiband_factor"} if right else set())
        assert re.search(match, meta["acquisition_errors"])

    @pytest.mark.parametrize(("factor", "times"), [(2, [0.0, 1.5, 0.7]), (1, [0.0, 0.7, 0.7])])
    def test_a_multiband_factor_that_the_slice_times_deny_is_left_out(self, scan, factor, times):
        with pytest.warns(UserWarning, match=rf"is {factor}, but SliceTiming has \d times for 3 slices"):
            meta = meta_of(scan, {"MultibandAccelerationFactor": factor, "SliceTiming": times})
        assert set(meta) & KEYS == {"slice_timing_s", "slice_world"}

    def test_one_axis_for_phase_and_slices_is_a_contradiction(self, scan):
        with pytest.warns(UserWarning, match="name one axis"):
            meta = meta_of(scan, {"PhaseEncodingDirection": "j-", "SliceEncodingDirection": "j"})
        assert "slice_world" not in meta
        assert "phase_encoding_world" in meta

    def test_a_doubled_key_is_left_out_with_both_values_and_the_others_stay(self, scan):
        text = '{"TotalReadoutTime": 0.05, "MultibandAccelerationFactor": 2, "TotalReadoutTime": 0.1}'
        scan.with_name("dwi.json").write_text(text)
        with pytest.warns(UserWarning, match=r"TotalReadoutTime stands more than once, as 0\.05 and 0\.1"):
            meta = read_dwi(scan)[0].meta
        assert set(meta) & KEYS == {"multiband_factor"}

    def test_a_doubled_key_of_one_value_is_no_contradiction(self, scan, recwarn):
        scan.with_name("dwi.json").write_text('{"TotalReadoutTime": 0.05, "TotalReadoutTime": 0.05}')
        assert read_dwi(scan)[0].meta["total_readout_time_s"] == 0.05
        assert not recwarn

    def test_a_byte_that_is_not_utf8_is_warned_of_and_loses_no_other_key(self, scan):
        text = '{"InstitutionName": "Universität", "TotalReadoutTime": 0.05}'
        scan.with_name("dwi.json").write_bytes(text.encode("latin-1"))
        with pytest.warns(UserWarning, match=r"byte 30 is not UTF-8.*dwi\.json"):
            assert read_dwi(scan)[0].meta["total_readout_time_s"] == 0.05

    def test_artifacts_that_follow_the_sidecar_refuse_what_had_to_be_left_out(self, scan):
        with pytest.warns(UserWarning, match="left out"):
            image, table = meta_of(scan, {"PhaseEncodingDirection": "AP"}), read_dwi(scan)[1]
        image = read_dwi(scan)[0]
        item = {"image": image, "bvals": table.bvals, "bvecs": table.bvecs}
        with pytest.raises(ValueError, match=r"PhaseEncodingDirection is 'AP'.*dwi\.json"):
            RandDWIArtifactsd(preset="light")(item)
        with pytest.raises(ValueError, match="PhaseEncodingDirection is 'AP'"):
            scan_meta({"acquisition_errors": [None, image.meta["acquisition_errors"]]}, 1)
        assert scan_meta({"acquisition_errors": [None, "text"], "multiband_factor": [2, None]}, 0) == {
            "multiband_factor": 2
        }

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "open", "bytes", "deep"]
    )
    def test_what_is_no_json_is_warned_of_naming_the_file(self, scan, content):
        scan.with_name("dwi.json").write_bytes(content)
        with pytest.warns(UserWarning, match=r"not valid JSON.*dwi\.json"):
            assert not KEYS & set(read_dwi(scan)[0].meta)

    def test_json_that_is_no_object_is_warned_of(self, scan):
        scan.with_name("dwi.json").write_text("[1]")
        with pytest.warns(UserWarning, match=r"JSON holds list, expected an object.*dwi\.json"):
            read_dwi(scan)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "JSON holds list"),
        (b'{"a": 1, "a": 2}', "a stands more than once, as 1 and 2"),
        (b'{"a": "\xe4"}', "byte 7 is not UTF-8"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
    ],
    ids=["open", "list", "doubled", "latin-1", "huge"],
)
def test_a_file_of_which_everything_is_needed_is_read_strictly(tmp_path, content, match):
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{match}.*model\.json"):
        read_json(path, strict=True)
    with pytest.warns(UserWarning, match=match):
        assert read_json(path) in ({}, {"a": "ä"})


def test_entries_are_inherited_and_the_nearest_wins(tmp_path):
    image = write_scan(tmp_path / "sub-01" / "dwi" / "sub-01_dwi.nii.gz")
    (tmp_path / "dwi.json").write_text('{"TotalReadoutTime": 0.1, "MultibandAccelerationFactor": 2}')
    (image.parent / "sub-01_dwi.json").write_text('{"TotalReadoutTime": 0.03}')
    meta = read_dwi(image)[0].meta
    assert (meta["total_readout_time_s"], meta["multiband_factor"]) == (0.03, 2)
