"""The JSON sidecar: acquisition directions as world vectors, and the numbers beside them."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from dmri_monai.io import read_dwi
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
    meta = meta_of(scan, {"PhaseEncodingDirection": code, "SliceEncodingDirection": code})
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
        content = {"TotalReadoutTime": 0.05, "MultibandAccelerationFactor": 3, "SliceTiming": [0.0, 1.5, 0.7]}
        meta = meta_of(scan, content)
        assert meta["total_readout_time_s"] == 0.05
        assert meta["multiband_factor"] == 3
        assert_close(meta["slice_timing_s"], torch.tensor([0.0, 1.5, 0.7]))

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
                {"TotalReadoutTime": 0}, "TotalReadoutTime is 0, expected a number above 0", id="zero"
            ),
            pytest.param({"TotalReadoutTime": True}, "TotalReadoutTime is True", id="bool"),
            pytest.param({"TotalReadoutTime": float("nan")}, "TotalReadoutTime is nan", id="nan"),
            pytest.param({"TotalReadoutTime": 10**400}, "TotalReadoutTime is 1000", id="huge"),
            pytest.param(
                {"MultibandAccelerationFactor": -2}, "MultibandAccelerationFactor is -2", id="negative"
            ),
            pytest.param(
                {"SliceTiming": [0, 1]}, "SliceTiming has 2 entries for 3 slices", id="timing-count"
            ),
            pytest.param({"SliceTiming": [0, 1, "2"]}, "SliceTiming entry 2 is '2'", id="timing-text"),
            pytest.param({"SliceTiming": 0.1}, r"SliceTiming is 0\.1, expected a list", id="timing-number"),
            pytest.param([1], "JSON holds list, expected an object", id="list"),
        ],
    )
    def test_a_wrong_entry_is_named_with_its_value_and_file(self, scan, content, match):
        with pytest.raises(ValueError, match=rf"{match}.*dwi\.json"):
            meta_of(scan, content)

    @pytest.mark.parametrize(
        "content", [b"", b"{", b"\xff\xfe", b"[" * 100_000], ids=["empty", "open", "bytes", "deep"]
    )
    def test_what_is_no_json_is_an_error_naming_the_file(self, scan, content):
        scan.with_name("dwi.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"not valid JSON.*dwi\.json"):
            read_dwi(scan)


def test_entries_are_inherited_and_the_nearest_wins(tmp_path):
    image = write_scan(tmp_path / "sub-01" / "dwi" / "sub-01_dwi.nii.gz")
    (tmp_path / "dwi.json").write_text('{"TotalReadoutTime": 0.1, "MultibandAccelerationFactor": 2}')
    (image.parent / "sub-01_dwi.json").write_text('{"TotalReadoutTime": 0.03}')
    meta = read_dwi(image)[0].meta
    assert (meta["total_readout_time_s"], meta["multiband_factor"]) == (0.03, 2)
