"""How a subject is scanned: grid, gradient table, noise and artifacts, given or drawn from the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable, grid_rotation
from dmri_monai.phantom.fields import Seed, rotation, stage_rng
from dmri_monai.phantom.schemes import Preset, draw_scheme, shell_table

__all__ = ["SNR_RANGE", "Acquisition", "AnatomyName", "SubjectOptions", "draw_affine", "scanner_protocol"]

AnatomyName = Literal["procedural", "mni152"]
SNR_RANGE = (15.0, 30.0)
SHAPES: dict[str, tuple[int, int, int]] = {"procedural": (48, 56, 48), "mni152": (96, 96, 60)}
SPACING_MM = (2.5, 2.5, 2.5)
FIELD_OF_VIEW_MM: dict[str, tuple[float, float, float]] = {  # of a randomised acquisition
    "procedural": (118.0, 138.0, 118.0),
    "mni152": (185.0, 220.0, 160.0),
}


class SubjectOptions(TypedDict, total=False):
    """Keywords of :func:`make_subject` that :func:`write_dataset` and :class:`PhantomStream` hand on."""

    anatomy: AnatomyName
    shape: tuple[int, int, int] | None
    spacing_mm: tuple[float, float, float] | None
    scheme: GradientTable | Preset | None
    snr: float | tuple[float, float] | None
    affine: Tensor | None
    acquisition: Acquisition | None
    device: str | torch.device


@dataclass(frozen=True)
class Acquisition:
    """What goes beyond grid, table and SNR.

    randomise: domain randomisation, another protocol for every subject: what is not given is drawn from wide ranges
    (1-3 shells of b = 700-3000 s/mm2, 1.6-3.2 mm, SNR 8-40, any storage order, echo and repetition time, relaxation).
    A given shape gets voxels large enough to hold the head.
    artifacts: preset ("light", "normal", "strong", "all", or
    a JSON file) that corrupts the scan before the noise; the preset's own noise is left out, because `snr` sets it.
    """

    randomise: bool = False
    artifacts: str | None = None


@dataclass(frozen=True)
class Scanner:
    """A subject's acquisition with every choice made; `affine` (4, 4) float64 on the CPU."""

    shape: tuple[int, int, int]
    affine: Tensor
    table: GradientTable
    snr: float


def plan_scanner(seed: Seed, options: SubjectOptions) -> Scanner:
    """Draw from the seed what `options` leave open.  ValueError for impossible seeds, grids, schemes, SNR."""
    anatomy = anatomy_name(options)
    wide = (options.get("acquisition") or Acquisition()).randomise
    given = options.get("shape")
    if given is not None and (np.shape(given) != (3,) or min(given) < 2):
        raise ValueError(f"shape: {tuple(given)}, expected three sizes of at least 2")
    spacing = options.get("spacing_mm")
    if spacing is None:
        spacing = _spacing(seed, anatomy, given) if wide else SPACING_MM
    if np.shape(spacing) != (3,) or not all(0 < s < np.inf for s in spacing):
        raise ValueError(f"spacing_mm: {spacing}, expected three positive numbers")
    shape = (_shape(anatomy, spacing) if wide else SHAPES[anatomy]) if given is None else _three(given)
    affine = options.get("affine")
    if affine is None:
        make = _any_affine if wide and given is None else draw_affine
        affine = make(stage_rng(seed, "affine"), shape, spacing)
        shape = _stored_shape(affine, shape, spacing)
    affine = torch.as_tensor(affine).double().cpu()
    if affine.shape != (4, 4):
        raise ValueError(f"affine: shape {tuple(affine.shape)}, expected (4, 4)")
    grid_rotation(affine)  # refuses singular and non-finite grids
    return Scanner(shape, affine, _table(seed, options.get("scheme"), wide), _snr(seed, options, wide))


def anatomy_name(options: SubjectOptions) -> AnatomyName:
    """Of `options`; ValueError for an unknown one."""
    name = options.get("anatomy", "procedural")
    if name not in SHAPES:
        raise ValueError(f"unknown anatomy {name!r}, expected one of {', '.join(SHAPES)}")
    return name


def draw_affine(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    max_degrees: float = 15.0,
) -> Tensor:
    """(4, 4) oblique RAS or LAS affine of a grid centred within 3 mm of the world origin."""
    flip = np.diag([float(rng.choice([-1, 1])), 1.0, 1.0])
    linear = rotation(rng, max_degrees) @ flip @ np.diag(spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = rng.uniform(-3, 3, 3) - linear @ (np.array(shape) - 1) / 2
    return torch.from_numpy(affine)


def _any_affine(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> Tensor:
    """As :func:`draw_affine`, to 25 degrees, any axis flipped, and the axes permuted in one scan of four."""
    order = rng.permutation(3) if rng.random() < 0.25 else np.arange(3)
    stored = np.diag(rng.choice([-1.0, 1.0], 3)) @ np.diag(spacing_mm)
    linear = (rotation(rng, 25.0) @ stored)[:, order]
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = rng.uniform(-5, 5, 3) - linear @ (np.array(shape)[order] - 1) / 2
    return torch.from_numpy(affine)


def _stored_shape(
    affine: Tensor, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> tuple[int, int, int]:
    """`shape`, given along x y z, in the order of the array axes of `affine`."""
    order = (affine[:3, :3] / torch.tensor(spacing_mm)).abs().argmax(dim=0).tolist()
    return (shape[order[0]], shape[order[1]], shape[order[2]]) if sorted(order) == [0, 1, 2] else shape


def _spacing(
    seed: Seed, anatomy: AnatomyName, shape: tuple[int, int, int] | None
) -> tuple[float, float, float]:
    rng = stage_rng(seed, "spacing")
    in_plane = float(rng.uniform(1.6, 2.8))
    slices = in_plane * float(rng.uniform(1.0, 1.4) if rng.random() < 0.4 else 1.0)
    drawn = np.array([in_plane, in_plane, min(slices, 3.2)])
    x, y, z = (
        drawn if shape is None else np.maximum(drawn, np.divide(FIELD_OF_VIEW_MM[anatomy], shape))
    ).tolist()
    return (x, y, z)


def _shape(anatomy: AnatomyName, spacing: tuple[float, float, float]) -> tuple[int, int, int]:
    return _three([round(v / s) for v, s in zip(FIELD_OF_VIEW_MM[anatomy], spacing, strict=True)])


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = map(int, sizes)
    return (x, y, z)


def _table(seed: Seed, scheme: GradientTable | Preset | None, wide: bool) -> GradientTable:
    if isinstance(scheme, GradientTable):
        if not len(scheme):
            raise ValueError("scheme: a gradient table without volumes")
        return scheme
    rng = stage_rng(seed, "scheme")
    return _any_table(rng) if wide and scheme is None else draw_scheme(rng, scheme or "random")


def _any_table(rng: np.random.Generator) -> GradientTable:
    """1-3 shells between 700 and 3000 s/mm2 with 12-64 directions each, and 1-8 b0 volumes."""
    n_shells = int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
    edges = np.linspace(700, 3000, n_shells + 1)
    if n_shells == 1:
        bvals = [float(rng.uniform(700, 1500) if rng.random() < 0.7 else rng.uniform(1500, 3000))]
    else:
        bvals = [float(rng.uniform(low, high - 200)) for low, high in zip(edges[:-1], edges[1:], strict=True)]
    return shell_table(rng, {b: int(rng.integers(12, 65)) for b in bvals}, int(rng.integers(1, 9)))


def _snr(seed: Seed, options: SubjectOptions, wide: bool) -> float:
    snr = options.get("snr")
    rng = stage_rng(seed, "snr")
    if snr is None and wide:
        return float(np.exp(rng.uniform(np.log(8), np.log(40))))
    snr = SNR_RANGE if snr is None else snr
    low, high = snr if isinstance(snr, (tuple, list)) else (snr, snr)
    if not 0 < low <= high < np.inf:
        raise ValueError(f"snr: {snr}, expected a positive, finite number or an ascending range")
    return float(rng.uniform(low, high))


def scanner_protocol(seed: Seed, n_slices: int, repetition_time_s: float) -> dict[str, Any]:
    """Phase encoding, readout and slice timing (interleaved) of a plausible echo-planar scan, in BIDS terms."""
    rng = stage_rng(seed, "protocol")
    order = [*range(0, n_slices, 2), *range(1, n_slices, 2)]
    timing = {slice_: round(i * repetition_time_s / n_slices, 5) for i, slice_ in enumerate(order)}
    return {
        "PhaseEncodingDirection": str(rng.choice(["j", "j-"])),
        "TotalReadoutTime": round(float(rng.uniform(0.04, 0.08)), 5),
        "SliceEncodingDirection": "k",
        "SliceTiming": [timing[i] for i in range(n_slices)],
    }
