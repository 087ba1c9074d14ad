"""A scan for checking, read without MONAI, whose import takes longer than the check itself."""

from __future__ import annotations

import os
from pathlib import Path

from dmri_monai.check.measured import Measured
from dmri_monai.gradients import B0_THRESHOLD
from dmri_monai.io.dwi import read_signal
from dmri_monai.io.sidecars import BvecsChoice

__all__ = ["read_measured"]


def read_measured(
    path: str | os.PathLike[str], *, bvecs: BvecsChoice = "auto", b0_threshold: float = B0_THRESHOLD
) -> Measured:
    """The DWI file at `path` with its sidecars; options and errors as :func:`dmri_monai.io.read_dwi`."""
    signal, source, table, meta = read_signal(Path(path), bvecs=bvecs, b0_threshold=b0_threshold)
    return Measured(signal, table, source.affine, meta.get("slice_world"))
