"""Is there an image at all: finite numbers, signal, volumes that hold something, enough of a head."""

from __future__ import annotations

import torch
from torch import Tensor

from dmri_monai.check.finding import Finding
from dmri_monai.check.measured import Measured

__all__ = ["empty_volumes", "is_block", "judge_image", "listed"]

# thinner than the one, or less than the other along two axes: what networks tell tissue by is missing
THIN_MM, NARROW_MM = 20.0, 100.0
EMPTY = 1e-3  # of the usual level of a volume
SHOWN = 5


def judge_image(scan: Measured) -> list[Finding]:
    """Findings of the stage "image"."""
    fatal = _unusable(scan.signal)
    if fatal is not None:
        return [fatal]
    found = _size(scan)
    empty = empty_volumes(scan.signal)
    if empty:
        of_b0 = int(scan.table.b0_mask[empty].sum())
        which = f" ({of_b0} of them b0)" if of_b0 and len(empty) > 1 else " (b0)" if of_b0 else ""
        found.append(Finding("empty-volume", f"no signal in {listed(empty)}{which}", tuple(empty)))
    return found


def empty_volumes(signal: Tensor) -> list[int]:
    """Volumes of `signal` (N, X, Y, Z) that are constant or next to nothing beside the others."""
    strength = signal.flatten(1).abs().mean(dim=1)
    flat = signal.flatten(1).amax(dim=1) == signal.flatten(1).amin(dim=1)
    faint = strength < EMPTY * strength.median()
    if bool(flat.sum() * 2 > len(flat)):  # then the median is that of nothing
        faint = strength < EMPTY * strength.max()
    return torch.nonzero(flat | faint).flatten().tolist()


def listed(volumes: list[int] | tuple[int, ...]) -> str:
    """The first few of `volumes` in words.

    >>> listed([3]), listed([0, 2]), listed([1, 2, 3, 4, 5, 6, 7])
    ('volume 3', 'volumes 0, 2', 'volumes 1, 2, 3, 4, 5 and 2 more')
    """
    more = f" and {len(volumes) - SHOWN} more" if len(volumes) > SHOWN else ""
    noun = "volume" if len(volumes) == 1 else "volumes"
    return f"{noun} {', '.join(map(str, volumes[:SHOWN]))}{more}"


def _unusable(signal: Tensor) -> Finding | None:
    """Why nothing can be said of the image, if so."""
    sums = signal.flatten(1).sum(dim=1)
    broken = torch.nonzero(~sums.isfinite()).flatten()
    bad = [i for i in broken.tolist() if not bool(signal[i].isfinite().all())]
    if bad:
        count = int((~signal[bad].isfinite()).sum())
        return Finding("not-finite", f"{count} values are not finite, in {listed(bad)}", tuple(bad))
    low, high = float(signal.min()), float(signal.max())
    if low == high == 0:
        return Finding("no-signal", "no signal: every voxel of every volume is 0")
    if low == high:
        return Finding("constant-signal", f"no signal: every voxel of every volume is {low:g}")
    if low >= 0:
        return None
    total, strength = float(sums.double().sum()), sum(float(volume.abs().sum()) for volume in signal)
    if strength - total > strength + total:  # the sum of what is below 0 outweighs the rest
        return Finding(
            "negated-signal", f"negative signal, from {low:g} to {high:g}: magnitudes are expected, from 0 up"
        )
    return None


def is_block(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> bool:
    """Whether a volume is too thin along one axis, or too narrow along two, to show the shape of a head."""
    thin, narrow, _ = sorted(n * size for n, size in zip(shape, spacing_mm, strict=True))
    return thin < THIN_MM or narrow < NARROW_MM


def _size(scan: Measured) -> list[Finding]:
    shape, extent = tuple(scan.signal.shape[1:]), scan.extent_mm
    if min(shape) == 1:
        return [
            Finding("single-slice", f"a single slice, of {_product(shape)} voxels: no neighbours across it")
        ]
    if is_block(shape, scan.spacing_mm):
        return [
            Finding(
                "small-block",
                f"a small block, {_product([round(e) for e in extent])} mm: it lacks the shape of a head, by "
                "which models of whole heads tell tissue; tissue-voxelwise and fractions-voxelwise do without",
            )
        ]
    return []


def _product(values: tuple[int, ...] | list[int]) -> str:
    return " x ".join(map(str, values))
