"""Every process of a training has a scan to validate."""

from __future__ import annotations

import json
from pathlib import Path

import ignite.distributed as idist
import pytest

from dmri_monai.parallel import check_enough_scans


def test_fewer_scans_than_processes_are_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="1 validation scan for 2 processes, each needs at least one"):
        check_enough_scans([0])
    check_enough_scans([0, 1])


def test_several_processes_look_before_they_train():
    path = Path(__file__).parents[1] / "configs" / "multi_gpu.json"
    initialize = json.loads(path.read_text(encoding="utf-8"))["initialize"]
    looked = initialize.index("$dmri_monai.parallel.check_enough_scans(@validate#dataset)")
    assert looked == initialize.index("$dmri_monai.parallel.start_parallel()") + 1
