"""Parse and format the text of gradient tables: FSL bval and bvec, MRtrix b.

A number is plain decimal text; anything a lenient parser would guess at (1_000 or 0,5) is an error that
names the file, the entry and its text. NaN passes in b-vectors only: some tools write "no direction" so, and
the table accepts it for b0 volumes alone. `#` starts a comment, as MRtrix writes them.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD, NORM_TOLERANCE, check_bvals

__all__ = ["format_bvals", "format_bvecs", "read_bvals", "read_bvecs", "read_mrtrix"]

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
NAN = re.compile(r"[+-]?nan", re.IGNORECASE)
NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)


def read_bvals(path: Path) -> Tensor:
    """(N,) float64 b-values in s/mm² of one row or one column."""
    rows = _numbers(path)
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
    table = torch.tensor(_rectangle(path, nan=True), dtype=torch.float64)
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
    raise ValueError(f"b-vectors: {count} entries for {n} b-values in {path}")


def _three_by_three(path: Path, table: Tensor, weighted: Tensor) -> Tensor:
    def is_unit(vectors: Tensor) -> bool:
        return bool(((vectors[weighted].norm(dim=1) - 1).abs() <= NORM_TOLERANCE).all())

    columns, rows = table.T.contiguous(), table
    if is_unit(columns) and is_unit(rows) and not torch.equal(columns[weighted], rows[weighted]):
        raise ValueError(f"b-vectors: 3 x 3 entries can be read by row and by column, ambiguous in {path}")
    return rows if is_unit(rows) and not is_unit(columns) else columns


def read_mrtrix(path: Path) -> tuple[Tensor, Tensor]:
    """b-values (N,) in s/mm² and vectors (N, 3) in the scanner frame (RAS+) of a .b file: rows of x y z b."""
    rows = _rectangle(path, nan=True)
    if len(rows[0]) != 4:
        raise ValueError(f"MRtrix table: {len(rows[0])} columns, expected 4 (x y z b) in {path}")
    table = torch.tensor(rows, dtype=torch.float64)
    check_bvals(table[:, 3], source=str(path))
    return table[:, 3].clone(), table[:, :3].contiguous()


def format_bvals(bvals: Tensor) -> str:
    """One row; integers stay integers, other values keep every digit."""
    return " ".join(str(int(b)) if b == int(b) else repr(b) for b in bvals.double().tolist()) + "\n"


def format_bvecs(bvecs_fsl: Tensor) -> str:
    """3 x N rows of FSL vectors (N, 3), ten decimals."""
    return "".join(" ".join(f"{v:.10f}" for v in row) + "\n" for row in (bvecs_fsl.double() + 0.0).T.tolist())


def _rectangle(path: Path, *, nan: bool) -> list[list[float]]:
    rows = _numbers(path, nan=nan)
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {i} has {len(row)} entries, row 0 has {len(rows[0])} in {path}")
    return rows


def _numbers(path: Path, *, nan: bool = False) -> list[list[float]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"not a text file ({error.reason} at byte {error.start}): {path}") from error
    words = [line.partition("#")[0].split() for line in text.splitlines()]
    rows = [
        [math.nan if nan and NAN.fullmatch(word) else _number(word, r, c, path) for c, word in enumerate(row)]
        for r, row in enumerate(filter(None, words))
    ]
    if not rows:
        raise ValueError(f"gradient file is empty: {path}")
    return rows


def _number(word: str, row: int, column: int, path: Path) -> float:
    if NUMBER.fullmatch(word):
        value = float(word)
        if math.isfinite(value):
            return value
    if NUMBER.fullmatch(word) or NOT_FINITE.fullmatch(word):
        raise ValueError(f"entry {column} of row {row} is {word[:40]}, expected a finite number in {path}")
    raise ValueError(f"entry {column} of row {row} is {word[:40]!r}, expected a number in {path}")
