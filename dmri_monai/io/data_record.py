"""What a model was trained on, as digests of the files that are small."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmri_monai.io.sidecars import BvecsChoice, find_sidecars

__all__ = ["data_record", "file_record"]


def data_record(
    data: Mapping[str, Sequence[Mapping[str, Any]]], bvecs: BvecsChoice = "auto"
) -> dict[str, Any]:
    """What a model was trained on: per part of `data` the scans and the SHA-256 of their gradient tables, and a digest.

    data: part ("train", "val" ...) -> items with an `image` file. The hash is of the files of the table, so that it can
    be checked with sha256sum; the images are not read.  bvecs: of :func:`dmri_monai.io.read_dwi`.
    """
    parts = {name: [_scan_record(item["image"], bvecs) for item in items] for name, items in data.items()}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {"digest": digest[:16], "parts": parts}


def _scan_record(image: str | Path, bvecs: BvecsChoice) -> dict[str, Any]:
    files = find_sidecars(Path(image), bvecs).tables
    return {"scan": Path(image).name, "table": {f.name: _sha256(f) for f in files}}


def file_record(item: Mapping[str, Any], tables: Sequence[Path]) -> dict[str, str]:
    """Name of each file of an `item` -> what tells another one from it: bytes of images, SHA-256 of `tables`."""
    paths = {str(key): Path(value) for key, value in item.items() if isinstance(value, str | Path)}
    sizes = {
        f"{key} {path.name}": f"{path.stat().st_size} bytes" for key, path in paths.items() if path.is_file()
    }
    return {**sizes, **{f"table {path.name}": f"SHA-256 {_sha256(path)}" for path in tables}}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
