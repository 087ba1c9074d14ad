"""Corrupt scans with a preset, and replay a record: draws on the CPU, arithmetic where the image is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from dmri_monai.artifacts.engine.presets import Preset, load_preset
from dmri_monai.artifacts.engine.raw_scan import (
    RawScan,
    known_acquisition,
    to_canonical,
    valid_rows,
    zero_invalid,
)
from dmri_monai.artifacts.engine.record import RECORD_VERSION, Record, parse_record
from dmri_monai.artifacts.engine.steps import apply, draw

__all__ = ["corrupt", "replay"]


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
        only = RawScan(
            image, bvals, bvecs_voxel, affine, valid_rows(valid, image), known_acquisition(meta), field_hz
        )
        return _corrupt_scan(only, chosen, _one_seed(seed))
    if image.ndim != 5:
        raise ValueError(f"image: shape {tuple(image.shape)}, expected (N, X, Y, Z) or (B, N, X, Y, Z)")
    size, seeds = len(image), list(seed) if isinstance(seed, Iterable) else [seed]
    if len(seeds) != size:
        raise ValueError(f"seed: {len(seeds)} numbers for {size} scans")
    affines = torch.as_tensor(affine).expand(size, 4, 4)
    corrupted, records = torch.empty_like(image, memory_format=torch.contiguous_format), []
    for i in range(size):
        rows = None if valid is None else valid_rows(valid[i], image[i])
        field = None if field_hz is None else field_hz[i]
        one = RawScan(image[i], bvals[i], bvecs_voxel[i], affines[i], rows, known_acquisition(meta, i), field)
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
    record, image = parse_record(record), image.as_subclass(Tensor)
    if record.get("invalid_voxels"):
        image, _ = zero_invalid(image)
    prepared = to_canonical(
        RawScan(image, bvals, bvecs_voxel, affine, record["volumes"], record["acquisition"], field_hz)
    )
    shape = [len(image), *prepared.scan.shape]
    if shape != record["shape"]:
        raise ValueError(f"image is {shape} on the canonical grid, the record's was {record['shape']}")
    return prepared.restored(image, apply(prepared.image, record["applied"], prepared.scan))


def _corrupt_scan(given: RawScan, preset: Preset, seed: int) -> tuple[Tensor, Record]:
    prepared = to_canonical(given)
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


def _one_seed(seed: Any) -> int:
    number = seed.item() if isinstance(seed, Tensor) and seed.numel() == 1 else seed
    if not isinstance(number, Integral) or isinstance(number, bool) or number < 0:
        raise ValueError(f"seed is {seed!r}, expected one whole number per scan, at least 0")
    return int(number)
