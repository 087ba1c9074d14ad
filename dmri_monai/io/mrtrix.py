"""MRtrix's gradient table: a `.b` file with a row "x y z b" for every volume, in the scanner frame (RAS+).

No image enters: the directions mean the same whatever the axes of the array.
Reference: https://mrtrix.readthedocs.io/en/latest/concepts/dw_scheme.html
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dmri_monai.gradients import check_bvals
from dmri_monai.io.number_rows import rectangle

__all__ = ["read_mrtrix"]


def read_mrtrix(path: Path) -> tuple[Tensor, Tensor]:
    """b-values (N,) in s/mm² and vectors (N, 3) in the scanner frame (RAS+) of a .b file: rows of x y z b."""
    rows = rectangle(path, nan=True)
    if len(rows[0]) != 4:
        raise ValueError(f"MRtrix table: {len(rows[0])} columns, expected 4 (x y z b) in {path}")
    table = torch.tensor(rows, dtype=torch.float64)
    check_bvals(table[:, 3], source=str(path))
    return table[:, 3].clone(), table[:, :3].contiguous()
