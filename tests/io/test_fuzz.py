"""Whatever lies in the files, the readers end in a right table or in an error that names a file."""

from __future__ import annotations

import gzip
import json
import math
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmri_monai.io import read_dwi, read_nifti
from tests.io.scans import bvals_and_bvecs, rows, save_image, voxels, write_scan

FAST = settings(derandomize=True, max_examples=60, deadline=None, database=None)
ODD_WORDS = ["nan", "-inf", "1e400", "-0.0", "0x10", "1_0", "1,5", "", "½", "--1", "1e-400", "+.5", "5.", "#"]
WORDS = st.one_of(
    st.sampled_from(ODD_WORDS),
    st.floats(-2, 2, allow_subnormal=False).map(repr),
    st.integers(-3, 4000).map(str),
)
TABLES = st.lists(st.lists(WORDS, max_size=9).map(" ".join), max_size=9).map("\n".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["j", "j-", "k", "AP", ""]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
JSON_KEYS = st.sampled_from(
    [
        "PhaseEncodingDirection",
        "SliceEncodingDirection",
        "SliceTiming",
        "TotalReadoutTime",
        "MultibandAccelerationFactor",
    ]
)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return write_scan(tmp_path_factory.mktemp("fuzz") / "dwi.nii")


def assert_right_or_refused(path: Path):
    """The table and image that are read, or None after an error that names a file of the scan."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image, table = read_dwi(path)
        except (ValueError, TypeError, OSError) as error:
            refusal = str(error)
        else:
            refusal = None
    if refusal is not None:
        assert str(path.parent) in refusal
        return None
    assert len(table) == len(image)
    assert image.as_tensor().isfinite().all()
    norms = table.bvecs.norm(dim=1)
    torch.testing.assert_close(norms, (table.bvals > 50).double(), rtol=0, atol=1e-9)
    return image, table


def plain_numbers(text: str) -> list[list[float]]:
    return [
        [float(word) for word in line.split("#")[0].split()]
        for line in text.splitlines()
        if line.split("#")[0].split()
    ]


@FAST
@given(text=TABLES)
def test_any_bval_text_is_right_or_refused(scan, text):
    sidecar = scan.with_name("dwi.bval")
    right = sidecar.read_text()
    try:
        sidecar.write_text(text, encoding="utf-8")
        result = assert_right_or_refused(scan)
        if result:
            assert result[1].bvals.tolist() == [b for row in plain_numbers(text) for b in row]
    finally:
        sidecar.write_text(right)


@FAST
@given(text=TABLES)
def test_any_bvec_text_is_right_or_refused(scan, text):
    sidecar = scan.with_name("dwi.bvec")
    right = sidecar.read_text()
    try:
        sidecar.write_text(text, encoding="utf-8")
        assert_right_or_refused(scan)
    finally:
        sidecar.write_text(right)


@FAST
@given(
    cells=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7), WORDS), max_size=3),
    transpose=st.booleans(),
    drop=st.integers(0, 2),
)
def test_a_damaged_bvec_table_never_gives_other_directions(scan, cells, transpose, drop):
    """Mostly right tables, damaged in a few cells: what is accepted is the file's own numbers, normalised."""
    bvals, bvecs = bvals_and_bvecs()
    table = [[f"{v:.12g}" for v in row] for row in bvecs.T]
    for r, c, word in cells:
        table[r][c] = word
    table = [row[: 8 - drop] for row in table]
    lines = zip(*table, strict=True) if transpose else table
    sidecar = scan.with_name("dwi.bvec")
    right = sidecar.read_text()
    try:
        sidecar.write_text("\n".join(" ".join(row) for row in lines), encoding="utf-8")
        result = assert_right_or_refused(scan)
        if result:
            image, read = result
            raw = np.array([[float(word) for word in row] for row in table]).T
            weighted = bvals > 50
            expected = raw[weighted] / np.linalg.norm(raw[weighted], axis=1, keepdims=True)
            np.testing.assert_allclose(read.to_fsl(image.affine)[weighted], expected, atol=1e-9)
    finally:
        sidecar.write_text(right)


@FAST
@given(content=st.binary(max_size=64) | TABLES.map(str.encode))
def test_any_mrtrix_file_is_right_or_refused(content):
    with tempfile.TemporaryDirectory() as folder:
        path = save_image(Path(folder) / "dwi.nii", voxels(2))
        path.with_name("dwi.b").write_bytes(content)
        assert_right_or_refused(path)


@FAST
@given(content=st.dictionaries(JSON_KEYS, JSON, max_size=3))
def test_any_json_entry_is_right_or_refused(scan, content):
    sidecar = scan.with_name("dwi.json")
    try:
        sidecar.write_text(json.dumps(content))
        result = assert_right_or_refused(scan)
        if result:
            for key in ("phase_encoding_world", "slice_world"):
                assert math.isclose(
                    float(result[0].meta.get(key, torch.tensor([1.0, 0, 0])).norm()), 1, abs_tol=1e-6
                )
    finally:
        sidecar.unlink()


@FAST
@given(content=st.binary(max_size=40))
def test_any_json_bytes_are_right_or_refused(scan, content):
    sidecar = scan.with_name("dwi.json")
    try:
        sidecar.write_bytes(content)
        assert_right_or_refused(scan)
    finally:
        sidecar.unlink()


@FAST
@given(changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_damaged_header_is_right_or_refused(changes):
    with tempfile.TemporaryDirectory() as folder:
        path = write_scan(Path(folder) / "dwi.nii")
        content = bytearray(path.read_bytes())
        for position, value in changes:
            content[position] = value
        path.write_bytes(content)
        assert_right_or_refused(path)


@FAST
@given(
    position=st.integers(0, 10_000),
    value=st.integers(1, 255),
    cut=st.integers(0, 40),
)
def test_any_damaged_gzip_is_right_or_refused(position, value, cut):
    with tempfile.TemporaryDirectory() as folder:
        path = write_scan(Path(folder) / "dwi.nii.gz")
        content = bytearray(path.read_bytes())
        content[position % len(content)] ^= value
        path.write_bytes(content[: len(content) - cut])
        result = assert_right_or_refused(path)
        if result:  # a change in the gzip header that does not matter
            np.testing.assert_array_equal(result[0].numpy(), np.moveaxis(voxels(), -1, 0))


@FAST
@given(content=st.binary(max_size=600), compressed=st.booleans())
def test_any_bytes_are_an_image_or_refused(content, compressed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("image.nii.gz" if compressed else "image.nii")
        path.write_bytes(gzip.compress(content) if compressed else content)
        try:
            image = read_nifti(path)
        except (ValueError, TypeError, OSError) as error:
            refusal = str(error)
        else:
            refusal = None
            assert image.ndim == 4
        assert refusal is None or str(path) in refusal


def test_the_check_itself_can_fail(tmp_path):
    """A table accepted against the counts of the scan would be noticed."""
    path = write_scan(tmp_path / "dwi.nii")
    path.with_name("dwi.bvec").write_text(rows(np.zeros((3, 8))))
    assert assert_right_or_refused(path) is None
    path.with_name("dwi.bvec").write_text(rows(bvals_and_bvecs()[1].T))
    assert assert_right_or_refused(path) is not None
