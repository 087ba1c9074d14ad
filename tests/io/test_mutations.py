"""Thousands of damaged tables and sidecars, judged by an oracle of their own: none is read wrongly in silence."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import ORIENTATIONS, grid_affine
from tests.io import mutations
from tests.io.mutations import expected_table, wrong_sidecars, wrong_tables

GRIDS = {
    name: grid_affine(ORIENTATIONS[name], (1.7, 1.7, 5.0)).float().double()
    for name in ("LAS", "oblique-right")
}
AFFINE = pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())


@AFFINE
def test_no_mutated_table_is_read_wrongly(tmp_path, affine):
    assert not list(wrong_tables(tmp_path, affine, 300))


@AFFINE
def test_no_mutated_sidecar_is_read_wrongly_and_none_keeps_a_scan_from_being_read(tmp_path, affine):
    assert not list(wrong_sidecars(tmp_path, affine, 150))


@pytest.mark.slow
@AFFINE
@pytest.mark.parametrize("seed", range(1, 16))
def test_none_of_thirty_thousand_mutated_tables_is_read_wrongly(tmp_path, affine, seed):
    assert not list(wrong_tables(tmp_path, affine, 1000, seed))


@pytest.mark.slow
@AFFINE
@pytest.mark.parametrize("seed", range(1, 5))
def test_none_of_eight_thousand_mutated_sidecars_is_read_wrongly(tmp_path, affine, seed):
    assert not list(wrong_sidecars(tmp_path, affine, 1000, seed))


def test_a_reader_that_guesses_would_be_found_out(tmp_path, monkeypatch):
    """The control: NumPy's lenient reading, with commas as blanks and the sign of x forgotten."""

    def lenient(image):
        texts = [
            image.with_name(f"dwi.{kind}").read_text(errors="ignore").replace(",", " ")
            for kind in ("bval", "bvec")
        ]
        try:
            bvals, vectors = (
                np.array([line.split() for line in t.splitlines() if line], float) for t in texts
            )
            return bvals.ravel(), vectors.reshape(3, -1).T
        except ValueError as error:
            return f"{error} in {image}"

    monkeypatch.setattr(mutations, "_read", lenient)
    found = list(wrong_tables(tmp_path, GRIDS["oblique-right"], 100))
    assert any("read though wrong" in line for line in found)
    assert any("read as something else" in line for line in found)


def test_the_oracle_itself_refuses_and_accepts():
    right = (b"0 1000\n", b"0 1\n0 0\n0 0\n")
    affine = np.diag([-2.0, 2, 2, 1])
    np.testing.assert_allclose(expected_table(*right, affine, 2)[1], [[0, 0, 0], [-1, 0, 0]])
    np.testing.assert_allclose(expected_table(*right, np.eye(4), 2)[1], [[0, 0, 0], [-1, 0, 0]])
    for bval, bvec in ((b"0 1,000\n", right[1]), (right[0], b"0 1\n0 0\n0 1\n"), (b"0\xa01000", right[1])):
        assert expected_table(bval, bvec, affine, 2) is None
