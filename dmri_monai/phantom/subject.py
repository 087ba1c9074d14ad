"""One phantom subject: a head on one grid, scanned, with its ground truth."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from dmri_monai.artifacts.engine import corrupt, load_preset
from dmri_monai.gradients import GradientTable
from dmri_monai.phantom.anatomy import TISSUES, voxel_centres
from dmri_monai.phantom.fields import Seed, plain_seed, stage_rng
from dmri_monai.phantom.heads import Head, build_head
from dmri_monai.phantom.microstructure import PEAK_RULE, find_peaks
from dmri_monai.phantom.scan_plan import (
    SNR_RANGE,
    Acquisition,
    AnatomyName,
    Scanner,
    SubjectOptions,
    draw_affine,
    plan_scanner,
    scanner_protocol,
)
from dmri_monai.phantom.schemes import Preset
from dmri_monai.phantom.signal import receive_bias

__all__ = ["SNR_RANGE", "Subject", "crossing_share", "draw_affine", "make_subject"]

NOISE_BLOCK = 1 << 20  # fixed: it orders the random numbers, and so decides the bytes of a data set


@dataclass(frozen=True)
class Subject:
    """A simulated scan and its ground truth, all on the grid of `affine` (4, 4), float64.

    image (N, X, Y, Z) float32: raw signal in arbitrary scanner units; clean: the same before artifacts and
    noise.  table: world frame.  dseg (X, Y, Z) uint8: 0 background, 1 WM, 2 GM, 3 CSF.
    lesion, brain_mask (X, Y, Z) uint8.  npeaks (X, Y, Z) uint8, 0-3.
    peaks_world (9, X, Y, Z) float32: x y z per peak in RAS+ world, length = volume fraction, NaN for none.
    parameters: what was drawn, for the sidecar.  maps: further truth of the MNI152 anatomy, (X, Y, Z) or
    (C, X, Y, Z): compartment fractions, dispersion, bundles.
    """

    image: MetaTensor
    table: GradientTable
    affine: Tensor
    dseg: Tensor
    lesion: Tensor
    npeaks: Tensor
    peaks_world: Tensor
    brain_mask: Tensor
    clean: Tensor
    parameters: dict[str, object] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)


def make_subject(
    seed: Seed,
    *,
    anatomy: AnatomyName = "procedural",
    shape: tuple[int, int, int] | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    scheme: GradientTable | Preset | None = None,
    snr: float | tuple[float, float] | None = None,
    affine: Tensor | None = None,
    acquisition: Acquisition | None = None,
    device: str | torch.device = "cpu",
) -> Subject:
    """Simulate the subject of `seed`; every argument left out is drawn from the seed.

    anatomy: "procedural" (0.7 of an adult's size), or "mni152" (adult; needs nilearn).  shape: voxels, else
    (48, 56, 48) or, for "mni152", (96, 96, 60).  spacing_mm: else 2.5.  scheme: table in the world frame, or a
    preset; None is "random".  snr: of the mean white-matter b0, a value or a range, else 15-30.  affine: (4, 4),
    overrides `spacing_mm`; None is oblique, left- or right-handed.  acquisition: artifacts and domain
    randomisation.  Head and fibres depend on the seed alone, not on grid, table or SNR.
    """
    seed = plain_seed(seed)
    chosen = acquisition or Acquisition()
    options: SubjectOptions = {
        "anatomy": anatomy, "shape": shape, "spacing_mm": spacing_mm, "scheme": scheme, "snr": snr,
        "affine": affine, "acquisition": chosen,
    }  # fmt: skip
    scanner = plan_scanner(seed, options)
    grid = scanner.affine.to(device)
    points = voxel_centres(grid, scanner.shape)
    head = build_head(anatomy, seed, affine=grid, shape=scanner.shape, points=points, wide=chosen.randomise)
    if not len(head.micro.index):
        raise ValueError(f"no part of the head lies in the grid of shape {scanner.shape} and its affine")
    clean, level = _scan(seed, head, scanner.table, points)
    clean = clean.reshape(-1, *scanner.shape)
    corrupted, record = _corrupted(seed, clean, head, scanner, chosen.artifacts)
    noisy = _noisy(seed, corrupted, level / scanner.snr)
    truth = _ground_truth(head, points)
    volumes = {k: v.reshape(*v.shape[:-1], *scanner.shape).contiguous() for k, v in truth.items()}
    maps = {k: v.reshape(*v.shape[:-1], *scanner.shape).contiguous() for k, v in head.maps.items()}
    parameters: dict[str, object] = {
        "Seed": seed, "SNR": scanner.snr, "SignalLevel": level, "Contrast": head.contrast.parameters(),
        "PeakRule": PEAK_RULE,
    }  # fmt: skip
    if anatomy != "procedural":
        share = crossing_share(volumes["dseg"], volumes["npeaks"])
        known = None if math.isnan(share) else share  # JSON has no NaN
        parameters |= {"AnatomyName": anatomy, "CrossingShare": known} | head.parameters
    if acquisition is not None:
        parameters |= {"Acquisition": asdict(chosen)} | ({"Artifacts": record} if record else {})
    return Subject(
        image=MetaTensor(noisy, affine=scanner.affine),
        clean=clean,
        table=scanner.table,
        affine=scanner.affine,
        parameters=parameters,
        maps=maps,
        **volumes,
    )


def crossing_share(dseg: Tensor, npeaks: Tensor) -> float:
    """Share of the white-matter voxels that hold at least two peaks; NaN without white matter."""
    return float((npeaks[dseg == 1] >= 2).float().mean())


def _scan(seed: Seed, head: Head, table: GradientTable, points: Tensor) -> tuple[Tensor, float]:
    """Noise-free scan (N, V) in scanner units, and its mean b0 signal in white matter."""
    level = float(stage_rng(seed, "gain").uniform(300, 1500))
    scale = level / head.contrast.s0("wm")
    index = head.micro.index
    scan = points.new_zeros(len(table), len(points))
    scan[:, index] = head.signal(table) * (scale * receive_bias(seed, points[index]))
    return scan, level


def _corrupted(
    seed: Seed, clean: Tensor, head: Head, scanner: Scanner, preset: str | None
) -> tuple[Tensor, dict[str, Any] | None]:
    """`clean` (N, X, Y, Z) with the artifacts of `preset`, all but its noise, and their record."""
    if preset is None:
        return clean, None
    chosen = load_preset(preset)
    without_noise = replace(chosen, artifacts=tuple(a for a in chosen.artifacts if a.name != "noise"))
    protocol = scanner_protocol(seed, clean.shape[-1], head.contrast.tr_ms / 1000)
    phase = scanner.affine[:3, 1] / scanner.affine[:3, 1].norm()
    sign = -1.0 if protocol["PhaseEncodingDirection"].endswith("-") else 1.0
    meta = {
        "phase_encoding_world": sign * phase,
        "slice_world": scanner.affine[:3, 2] / scanner.affine[:3, 2].norm(),
        "total_readout_time_s": protocol["TotalReadoutTime"],
        "slice_timing_s": protocol["SliceTiming"],
    }
    return corrupt(
        clean,
        scanner.table.bvals.to(clean),
        scanner.table.in_voxel_frame(scanner.affine).to(clean),
        affine=scanner.affine,
        preset=without_noise,
        seed=int(stage_rng(seed, "artifacts").integers(2**31)),
        meta=meta,
    )


def _noisy(seed: Seed, clean: Tensor, sigma: float) -> Tensor:
    """Rician noise as in `artifacts.noise.rician`, drawn `NOISE_BLOCK` voxels at a time."""
    generator = torch.Generator(clean.device).manual_seed(int(stage_rng(seed, "noise").integers(2**31)))
    scale = torch.as_tensor(sigma, dtype=clean.dtype, device=clean.device)
    result = torch.empty_like(clean)
    for rows in torch.arange(len(clean)).split(max(1, NOISE_BLOCK // clean[0].numel())):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        real = torch.empty_like(clean[part]).normal_(generator=generator)
        power = torch.empty_like(clean[part]).normal_(generator=generator).square_()
        real.mul_(scale).add_(clean[part]).square_()
        result[part] = real.add_(power.mul_(scale.square())).sqrt_()
    return result


def _ground_truth(head: Head, points: Tensor) -> dict[str, Tensor]:
    """Labels over the flattened grid (..., V)."""
    inside = dict(zip(TISSUES, head.fractions, strict=True))
    outside = inside["bone"] + inside["scalp"] + inside["air"]
    dseg = torch.stack([outside, inside["wm"], inside["gm"], inside["csf"]]).argmax(dim=0)
    lesion = (head.lesion >= 0.5) & (dseg == 1)
    count, found = find_peaks(head.micro.fibre_volumes, head.micro.fibre_directions)
    npeaks = torch.zeros_like(dseg)
    npeaks[head.micro.index] = count
    peaks = torch.full((9, len(points)), torch.nan, device=points.device)
    present = found.norm(dim=2, keepdim=True) > 0
    peaks[:, head.micro.index] = found.where(present, torch.nan).flatten(1).T
    return {
        "dseg": dseg.byte(),
        "lesion": lesion.byte(),
        "npeaks": npeaks.byte(),
        "peaks_world": peaks,
        "brain_mask": (dseg > 0).byte(),
    }
