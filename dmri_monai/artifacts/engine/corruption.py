"""Corrupt scans with a preset, and replay a record: draws on the CPU, arithmetic where the image is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmri_monai.artifacts.engine.presets import ARTIFACTS, Preset, load_preset
from dmri_monai.artifacts.engine.scan_context import SCAN_META, Reorientation, ScanContext, describe
from dmri_monai.artifacts.engine.steps import apply, draw
from dmri_monai.artifacts.magnitudes import (
    HALF,
    as_stored,
    check_finite,
    check_magnitude,
    check_non_negative,
    check_shape,
)

__all__ = ["Record", "corrupt", "ground_truth", "replay", "zero_invalid"]

Record = dict[str, Any]
RECORD_VERSION = 1


@torch.no_grad()
def corrupt(
    image: Tensor,
    bvals: Tensor,
    bvecs_voxel: Tensor,
    *,
    affine: Tensor,
    preset: str | Preset | Mapping[str, Any],
    seed: int | Sequence[int],
    valid: Tensor | None = None,
    meta: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    field_hz: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """Corrupted copy of raw scans and the record of what was done to each.

    image: (N, X, Y, Z) or (B, N, X, Y, Z) raw signal, finite and non-negative (see `zero_invalid`).  bvals:
    (N,) or (B, N) in s/mm2.  bvecs_voxel: (N, 3) or (B, N, 3) in the voxel frame of `affine` (4, 4) or (B, 4,
    4). preset: a name ("light", "normal", "strong", "all"), the path of a JSON file, its content, or a
    `Preset`. seed: one number per scan, a function of (seed, epoch, item): what is drawn depends on it alone.
    valid: (N,) or (B, N) bool; other volumes (padding) are left alone.  meta: what is known of the
    acquisition (`SCAN_META`); for a batch collated, or one mapping per scan.  field_hz: (X, Y, Z) or (B, X,
    Y, Z) measured field map, used instead of a synthetic one.
    The record is JSON-serialisable: a dictionary, or a list of B; `replay` repeats it exactly.
    """
    chosen = load_preset(preset)
    image = image.as_subclass(
        Tensor
    )  # of a MetaTensor: its operations would copy the meta data at every step
    if image.ndim == 4:
        only = _Input(image, bvals, bvecs_voxel, affine, _rows(valid, image), _scan_meta(meta), field_hz)
        return _corrupt_scan(only, chosen, _one_seed(seed))
    if image.ndim != 5:
        raise ValueError(f"image: shape {tuple(image.shape)}, expected (N, X, Y, Z) or (B, N, X, Y, Z)")
    size, seeds = len(image), list(seed) if isinstance(seed, Iterable) else [seed]
    if len(seeds) != size:
        raise ValueError(f"seed: {len(seeds)} numbers for {size} scans")
    affines = torch.as_tensor(affine).expand(size, 4, 4)
    corrupted, records = torch.empty_like(image, memory_format=torch.contiguous_format), []
    for i in range(size):
        rows = None if valid is None else _rows(valid[i], image[i])
        field = None if field_hz is None else field_hz[i]
        one = _Input(image[i], bvals[i], bvecs_voxel[i], affines[i], rows, _scan_meta(meta, i), field)
        corrupted[i], record = _corrupt_scan(one, chosen, _one_seed(seeds[i]))
        records.append(record)
    return corrupted, records


@torch.no_grad()
def replay(
    image: Tensor,
    bvals: Tensor,
    bvecs_voxel: Tensor,
    *,
    affine: Tensor,
    record: Record | str,
    field_hz: Tensor | None = None,
) -> Tensor:
    """`image` (N, X, Y, Z) with exactly the corruption of `record` (or its JSON); bit-exact on the CPU.

    The image may be stored in another orientation than the recorded one; `affine` (4, 4) tells.
    """
    record, image = _parsed(record), image.as_subclass(Tensor)
    if record.get("invalid_voxels"):
        image, _ = zero_invalid(image)
    prepared = _prepare(
        _Input(image, bvals, bvecs_voxel, affine, record["volumes"], record["acquisition"], field_hz)
    )
    shape = [len(image), *prepared.scan.shape]
    if shape != record["shape"]:
        raise ValueError(f"image is {shape} on the canonical grid, the record's was {record['shape']}")
    return prepared.restored(image, apply(prepared.image, record["applied"], prepared.scan))


def ground_truth(record: Record | str, affine: Tensor) -> dict[str, Tensor]:
    """Which slices of which volumes each applied artifact changed: (N, S) bool per artifact name.

    Slices are counted along the slice axis of an array with `affine` (4, 4): the one the record was made on,
    or a reoriented one.
    """
    record = _parsed(record)
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


def zero_invalid(image: Tensor) -> tuple[Tensor, int]:
    """`image` with NaN, infinite and negative voxels set to 0, and how many there were."""
    bad = ~((image >= 0) & image.isfinite())
    count = int(bad.sum())
    return (image.masked_fill(bad, 0) if count else image), count


@dataclass(frozen=True)
class _Input:
    """One scan as it is given; see `corrupt`."""

    image: Tensor
    bvals: Tensor
    bvecs_voxel: Tensor
    affine: Tensor
    rows: list[int] | None
    meta: Mapping[str, Any]
    field_hz: Tensor | None


@dataclass(frozen=True)
class _Prepared:
    """The valid volumes of one scan on the canonical grid."""

    image: Tensor
    scan: ScanContext
    turn: Reorientation
    rows: list[int] | None

    def restored(self, image: Tensor, corrupted: Tensor) -> Tensor:
        """`corrupted` in the array axes of `image`, among its untouched volumes; never the same memory."""
        back = self.turn.backward(as_stored(corrupted, image.dtype))
        if self.rows is None:
            return back.clone() if back.data_ptr() == image.data_ptr() else back
        whole = image.clone()
        whole[_selection(self.rows)] = back
        return whole


def _prepare(given: _Input) -> _Prepared:
    image, rows = given.image, given.rows
    if image.ndim != 4:
        raise ValueError(f"image: shape {tuple(image.shape)}, expected (N, X, Y, Z)")
    check_shape("bvals", given.bvals, (len(image),))
    check_shape("bvecs_voxel", given.bvecs_voxel, (len(image), 3))
    affine = torch.as_tensor(given.affine).detach().double().cpu()
    check_shape("affine", affine, (4, 4))
    turn = Reorientation.to_canonical(affine)
    chosen = _selection(rows)
    canonical = turn.forward(image[chosen])
    check_magnitude(canonical)
    if given.field_hz is not None:
        check_shape("field_hz", given.field_hz, tuple(image.shape[1:]))
        check_finite("field_hz", given.field_hz)
    field = None if given.field_hz is None else turn.forward(given.field_hz)
    check_non_negative("bvals", given.bvals[chosen])
    check_finite("bvecs_voxel", given.bvecs_voxel[chosen])
    table = (_array(given.bvals)[chosen], _array(given.bvecs_voxel)[chosen])
    if canonical.dtype in HALF:  # sums and intermediate steps need more digits, and more range
        canonical = canonical.float()
    scan = describe(canonical, table, affine.numpy(), turn, given.meta, field)
    return _Prepared(canonical, scan, turn, rows)


def _corrupt_scan(given: _Input, preset: Preset, seed: int) -> tuple[Tensor, Record]:
    prepared = _prepare(given)
    scan = prepared.scan
    applied = draw(preset, seed, scan)
    record: Record = {
        "version": RECORD_VERSION,
        "preset": preset.name,
        "seed": seed,
        "shape": [len(given.image), *scan.shape],
        "volumes": prepared.rows,
        "slice_axis": scan.slice_axis,
        "acquisition": dict(given.meta),
        "applied": applied,
    }
    return prepared.restored(given.image, apply(prepared.image, applied, scan)), record


def _rows(valid: Tensor | None, image: Tensor) -> list[int] | None:
    if valid is None:
        return None
    check_shape("valid", valid, (len(image),))
    rows = [int(i) for i in torch.nonzero(valid.detach().cpu()).flatten()]
    if not rows:
        raise ValueError(f"valid: none of {len(image)} volumes is")
    return None if len(rows) == len(image) else rows


def _selection(rows: list[int] | None) -> slice | list[int]:
    """Index of `rows`; a slice, which copies nothing, where they are the first ones: padding comes last."""
    if rows is None:
        return slice(None)
    return slice(len(rows)) if rows == list(range(len(rows))) else rows


def _scan_meta(meta: Any, item: int | None = None) -> dict[str, Any]:
    """What is known of one scan's acquisition, JSON-serialisable; of a batch's collated meta data, row
    `item`.
    """
    if meta is None:
        return {}
    if item is not None and not isinstance(meta, Mapping):
        meta, item = meta[item], None
    known = {key: meta[key] for key in SCAN_META if meta.get(key) is not None}
    return {key: _plain(value if item is None else value[item]) for key, value in known.items()}


def _plain(value: Any) -> Any:
    return torch.as_tensor(value).tolist()


def _parsed(record: Record | str) -> Record:
    content: Record = json.loads(record) if isinstance(record, str) else record
    if content.get("version") != RECORD_VERSION:
        raise ValueError(f"record version {content.get('version')}, expected {RECORD_VERSION}")
    return content


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()


def _one_seed(seed: Any) -> int:
    number = seed.item() if isinstance(seed, Tensor) and seed.numel() == 1 else seed
    if not isinstance(number, Integral) or isinstance(number, bool) or number < 0:
        raise ValueError(f"seed is {seed!r}, expected one whole number a scan, at least 0")
    return int(number)
