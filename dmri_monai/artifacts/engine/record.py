"""The record of a corruption: what it holds, and which slices it says were changed."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from dmri_monai.artifacts.engine.canonical_grid import Reorientation
from dmri_monai.artifacts.engine.catalogue import ARTIFACTS

__all__ = ["RECORD_VERSION", "Record", "ground_truth", "parse_record", "slices_by_artifact"]

Record = dict[str, Any]
RECORD_VERSION = 1


def parse_record(record: Record | str) -> Record:
    """The record of its JSON, or as it is; ValueError for a version that this package does not replay."""
    content: Record = json.loads(record) if isinstance(record, str) else record
    if content.get("version") != RECORD_VERSION:
        raise ValueError(f"record version {content.get('version')}, expected {RECORD_VERSION}")
    return content


def ground_truth(record: Record | str, affine: Tensor) -> dict[str, Tensor]:
    """Which slices of which volumes each applied artifact changed: (N, S) bool per artifact name.

    Slices are counted along the slice axis of an array with `affine` (4, 4): the one the record was made on,
    or a reoriented one.
    """
    record = parse_record(record)
    axis, shape = record["slice_axis"], record["shape"]
    flipped = Reorientation.to_canonical(torch.as_tensor(affine)).flipped[axis]
    rows = record["volumes"] if record["volumes"] is not None else list(range(shape[0]))
    truth = {}
    for entry in record["applied"]:
        hits = torch.zeros(shape[0], shape[1 + axis], dtype=torch.bool)
        kind = ARTIFACTS[entry["artifact"]]
        hits[rows] = torch.from_numpy(kind.hits(entry["drawn"], len(rows), shape[1 + axis]))
        truth[entry["artifact"]] = hits.flip(1) if flipped else hits
    return truth


def slices_by_artifact(record: Record | str, affine: Tensor) -> Tensor:
    """(A, N, S) bool: `ground_truth` of every artifact in the order of `ARTIFACTS`, False for one not applied."""
    record = parse_record(record)
    truth = ground_truth(record, affine)
    none = torch.zeros(record["shape"][0], record["shape"][1 + record["slice_axis"]], dtype=torch.bool)
    return torch.stack([truth.get(name, none) for name in ARTIFACTS])
