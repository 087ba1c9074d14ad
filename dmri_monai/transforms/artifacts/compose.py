"""Corrupt scans with a preset, and replay a record: draws on the CPU, arithmetic where the image is."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmri_monai.physics.checks import check_magnitude
from dmri_monai.transforms.artifacts.presets import ARTIFACTS, Preset, load_preset
from dmri_monai.transforms.artifacts.scan import Reorientation, Scan, describe

__all__ = ["corrupt", "ground_truth", "item_seed", "random_state", "replay"]

Record = dict[str, Any]
RECORD_VERSION = 1


def item_seed(seed: int, epoch: int, item: int) -> int:
    """Seed of one item in one epoch: a hash, so that neighbouring numbers give unrelated draws.

    >>> item_seed(0, 0, 1) == item_seed(0, 0, 1), item_seed(0, 0, 1) == item_seed(0, 1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence([seed, epoch, item]).generate_state(1)[0])


def corrupt(
    image: Tensor,
    bvals: Tensor,
    bvecs_voxel: Tensor,
    *,
    affine: Tensor,
    preset: str | Preset,
    seed: int | Sequence[int],
    valid: Tensor | None = None,
    meta: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
) -> tuple[Tensor, Any]:
    """Corrupted copy of raw scans and the record of what was done to each.

    image: (N, X, Y, Z) or (B, N, X, Y, Z) raw signal, finite and non-negative.  bvals (N,) or (B, N) in
    s/mm2; bvecs_voxel (N, 3) or (B, N, 3) in the voxel frame of `affine` (4, 4) or (B, 4, 4).  preset: a name
    ("light", "normal", "strong", "all"), the path of a JSON file, or a `Preset`.  seed: one number per scan
    (see `item_seed`).  valid: (N,) or (B, N) bool; other volumes (padding) are left alone.  meta: a mapping
    per scan with what `describe` uses.
    The record is JSON-serialisable: a dictionary, or a list of B; `replay` repeats it exactly.
    """
    chosen = load_preset(preset)
    if image.ndim == 4:
        return _corrupt_scan(image, bvals, bvecs_voxel, affine, chosen, _one_seed(seed), _rows(valid), meta)
    if image.ndim != 5:
        raise ValueError(f"image: shape {tuple(image.shape)}, expected (N, X, Y, Z) or (B, N, X, Y, Z)")
    size = len(image)
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if len(seeds) != size:
        raise ValueError(f"seed: {len(seeds)} numbers for {size} scans")
    affines = torch.as_tensor(affine).expand(size, 4, 4)
    metas = list(meta) if isinstance(meta, Sequence) else [meta] * size
    results = [
        _corrupt_scan(image[i], bvals[i], bvecs_voxel[i], affines[i], chosen, int(seeds[i]), rows, metas[i])
        for i, rows in enumerate([None] * size if valid is None else map(_rows, valid))
    ]
    return torch.stack([r[0] for r in results]), [r[1] for r in results]


def replay(image: Tensor, bvals: Tensor, bvecs_voxel: Tensor, *, affine: Tensor, record: Record) -> Tensor:
    """`image` (N, X, Y, Z) with exactly the corruption of `record`; bit-exact on the CPU.

    The image may be stored in another orientation than the recorded one; `affine` (4, 4) tells.
    """
    if record["version"] != RECORD_VERSION:
        raise ValueError(f"record version {record['version']}, expected {RECORD_VERSION}")
    prepared = _prepare(image, bvals, bvecs_voxel, affine, record["volumes"], {})
    shape = [len(image), *prepared.scan.shape]
    if shape != record["shape"]:
        raise ValueError(f"image is {shape} on the canonical grid, the record's was {record['shape']}")
    return prepared.restored(image, _apply(prepared.image, record, prepared.scan))


def ground_truth(record: Record, affine: Tensor) -> dict[str, Tensor]:
    """Which slices of which volumes each applied artifact changed: (N, S) bool per artifact name.

    Slices are counted along the slice axis of an array with `affine` (4, 4): the one the record was made on,
    or a reoriented one.
    """
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


@dataclass(frozen=True)
class _Prepared:
    """The valid volumes of one scan on the canonical grid."""

    image: Tensor
    scan: Scan
    turn: Reorientation
    rows: list[int] | None

    def restored(self, image: Tensor, corrupted: Tensor) -> Tensor:
        """`corrupted` in the array axes of `image`, among its untouched volumes."""
        back = self.turn.backward(corrupted)
        if self.rows is None:
            return back
        whole = image.clone()
        whole[self.rows] = back
        return whole


def _prepare(
    image: Tensor, bvals: Tensor, bvecs_voxel: Tensor, affine: Tensor, rows: list[int] | None, meta: Any
) -> _Prepared:
    if image.ndim != 4:
        raise ValueError(f"image: shape {tuple(image.shape)}, expected (N, X, Y, Z)")
    if tuple(bvals.shape) != (len(image),) or tuple(bvecs_voxel.shape) != (len(image), 3):
        raise ValueError(
            f"gradient table: {tuple(bvals.shape)} b-values and {tuple(bvecs_voxel.shape)} b-vectors "
            f"for {len(image)} volumes"
        )
    affine = torch.as_tensor(affine).detach().double().cpu()
    turn = Reorientation.to_canonical(affine)
    chosen = slice(None) if rows is None else rows
    canonical = turn.forward(image[chosen])
    check_magnitude(canonical)
    table = (_array(bvals)[chosen], _array(bvecs_voxel)[chosen])
    scan = describe(canonical, table, affine.numpy(), turn, meta)
    return _Prepared(canonical, scan, turn, rows)


def _corrupt_scan(
    image: Tensor,
    bvals: Tensor,
    bvecs_voxel: Tensor,
    affine: Tensor,
    preset: Preset,
    seed: int,
    rows: Any,
    meta: Any,
) -> tuple[Tensor, Record]:
    prepared = _prepare(image, bvals, bvecs_voxel, affine, rows, meta)
    scan = prepared.scan
    record = {
        "version": RECORD_VERSION,
        "preset": preset.name,
        "seed": seed,
        "shape": [len(image), *scan.shape],
        "volumes": rows,
        "slice_axis": scan.slice_axis,
        "applied": _draw(preset, seed, scan),
    }
    return prepared.restored(image, _apply(prepared.image, record, scan)), record


def _draw(preset: Preset, seed: int, scan: Scan) -> list[dict[str, Any]]:
    """What each artifact drew, in physical order; each draws from its own stream, so one does not move the
    others.
    """
    applied = []
    for artifact in preset.artifacts:
        R = random_state(seed, artifact.name)
        if R.uniform() < artifact.prob:
            applied.append({"artifact": artifact.name, "drawn": artifact.draw(R, scan)})
    return applied


def random_state(seed: int, name: str) -> np.random.RandomState:
    """Stream of one artifact in one item."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))


def _apply(image: Tensor, record: Record, scan: Scan) -> Tensor:
    for entry in record["applied"]:
        image = ARTIFACTS[entry["artifact"]].apply(image, entry["drawn"], scan)
    return image


def _rows(valid: Tensor | None) -> list[int] | None:
    if valid is None or bool(valid.all()):
        return None
    return [int(i) for i in torch.nonzero(valid.detach().cpu()).flatten()]


def _array(values: Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()


def _one_seed(seed: int | Sequence[int]) -> int:
    if isinstance(seed, Sequence):
        raise ValueError(f"seed: {len(seed)} numbers for one scan")
    return int(seed)
