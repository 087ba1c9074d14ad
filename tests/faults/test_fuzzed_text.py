"""Gradient tables and sidecars as editors, converters and disks damage them: refused, or read as they stand."""

from __future__ import annotations

import pytest

from tests.conftest import ORIENTATIONS, grid_affine
from tests.io.mutations import wrong_sidecars, wrong_tables

GRIDS = ("LAS", "oblique-right")
SEEDS = range(100, 105)
TABLES, SIDECARS = 3000, 800  # a grid and seed: 30 000 and 8 000 in all


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_no_fuzzed_table_is_read_wrongly(tmp_path, count, grid, seed):
    affine = grid_affine(ORIENTATIONS[grid], (1.7, 1.7, 5.0)).float().double()
    wrong = list(wrong_tables(tmp_path, affine, TABLES, seed))
    count("fuzzed gradient tables", "wrong", len(wrong))
    count("fuzzed gradient tables", "right", TABLES - len(wrong))
    assert not wrong


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("grid", GRIDS)
def test_no_fuzzed_sidecar_is_read_wrongly(tmp_path, count, grid, seed):
    affine = grid_affine(ORIENTATIONS[grid], (1.7, 1.7, 5.0)).float().double()
    wrong = list(wrong_sidecars(tmp_path, affine, SIDECARS, seed))
    count("fuzzed JSON sidecars", "wrong", len(wrong))
    count("fuzzed JSON sidecars", "right", SIDECARS - len(wrong))
    assert not wrong
