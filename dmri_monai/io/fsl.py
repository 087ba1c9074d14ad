"""FSL's gradient tables: `.bval` and `.bvec` text.

The vectors are along the image's axes, with x mirrored where the affine has a positive determinant; that rule
itself is `dmri_monai.gradients.world_from_fsl`.  eddy writes vectors turned with the head motion beside its output, in
the same frame.
NaN passes in b-vectors only: some tools write "no direction" so, and the table accepts it for b0 volumes alone.
Reference: https://fsl.fmrib.ox.ac.uk/fsl/docs/#/diffusion/dtifit
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD, NORM_TOLERANCE, check_bvals
from dmri_monai.io.number_rows import number_rows, rectangle

__all__ = ["EDDY_ENDING", "format_bvals", "format_bvecs", "read_bvals", "read_bvecs"]

EDDY_ENDING = ".eddy_rotated_bvecs"


def read_bvals(path: Path) -> Tensor:
    """(N,) float64 b-values in s/mm² of one row or one column."""
    rows = number_rows(path)
    if len(rows) != 1 and any(len(row) != 1 for row in rows):
        raise ValueError(
            f"b-values: {len(rows)} rows of {len(rows[0])} entries, expected one row or column in {path}"
        )
    bvals = torch.tensor([value for row in rows for value in row], dtype=torch.float64)
    check_bvals(bvals, source=str(path))
    return bvals


def read_bvecs(path: Path, bvals: Tensor, b0_threshold: float = B0_THRESHOLD) -> Tensor:
    """(N, 3) float64 vectors in the file's (FSL) frame, N = len(bvals), of 3 x N (standard) or N x 3 text.

    A 3 x 3 file is read in the one orientation whose weighted vectors all have unit length; when both have,
    and the two tables differ, it is ambiguous and an error.
    """
    table = torch.tensor(rectangle(path, nan=True), dtype=torch.float64)
    n, shape = len(bvals), tuple(table.shape)
    if shape == (3, 3) and n == 3:
        return _three_by_three(path, table, bvals > b0_threshold)
    if shape == (3, n):
        return table.T.contiguous()
    if shape == (n, 3):
        return table
    if 3 not in shape:
        raise ValueError(f"b-vectors: {shape[0]} x {shape[1]} entries, expected 3 x {n} or {n} x 3 in {path}")
    count = shape[1] if shape[0] == 3 else shape[0]
    extra = ": one is probably of the scanner's trace or ADC volume" if abs(count - n) == 1 else ""
    raise ValueError(f"b-vectors: {count} entries for {n} b-values in {path}{extra}")


def _three_by_three(path: Path, table: Tensor, weighted: Tensor) -> Tensor:
    def is_unit(vectors: Tensor) -> bool:
        return bool(((vectors[weighted].norm(dim=1) - 1).abs() <= NORM_TOLERANCE).all())

    columns, rows = table.T.contiguous(), table
    if is_unit(columns) and is_unit(rows) and not torch.equal(columns[weighted], rows[weighted]):
        raise ValueError(f"b-vectors: 3 x 3 entries can be read by row and by column, ambiguous in {path}")
    return rows if is_unit(rows) and not is_unit(columns) else columns


def format_bvals(bvals: Tensor) -> str:
    """One row; integers stay integers, other values keep every digit."""
    return " ".join(str(int(b)) if b == int(b) else repr(b) for b in bvals.double().tolist()) + "\n"


def format_bvecs(bvecs_fsl: Tensor) -> str:
    """3 x N rows of FSL vectors (N, 3), ten decimals."""
    return "".join(" ".join(f"{v:.10f}" for v in row) + "\n" for row in (bvecs_fsl.double() + 0.0).T.tolist())
