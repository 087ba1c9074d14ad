"""One phantom subject: anatomy -> microstructure -> signal on one grid, with its ground truth."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from dmri_monai.gradients import GradientTable, grid_rotation
from dmri_monai.phantom.anatomy import TISSUES, Anatomy, voxel_centres
from dmri_monai.phantom.fields import Seed, rotation, stage_rng
from dmri_monai.phantom.lesions import Lesions
from dmri_monai.phantom.microstructure import Contrast, Microstructure, find_peaks
from dmri_monai.phantom.schemes import Preset, draw_scheme
from dmri_monai.phantom.signal import receive_bias, simulate
from dmri_monai.physics.noise import rician

__all__ = ["PEAK_RULE", "Subject", "draw_affine", "make_subject"]

PEAK_RULE = {"MinimumFraction": 0.1, "MinimumAngleDeg": 25.0}
SNR_RANGE = (15.0, 30.0)


@dataclass(frozen=True)
class Subject:
    """A simulated scan and its ground truth, all on the grid of `affine` (4, 4), float64.

    image (N, X, Y, Z) float32: raw signal in arbitrary scanner units; clean: the same before noise.
    table: world frame.  dseg (X, Y, Z) uint8: 0 background, 1 WM, 2 GM, 3 CSF.
    lesion, brain_mask (X, Y, Z) uint8.  npeaks (X, Y, Z) uint8, 0-3.
    peaks_world (9, X, Y, Z) float32: x y z per peak in RAS+ world, length = volume fraction, NaN for none.
    parameters: what was drawn, for the sidecar.
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


def make_subject(
    seed: Seed,
    *,
    shape: tuple[int, int, int] = (48, 56, 48),
    spacing_mm: tuple[float, float, float] = (2.5, 2.5, 2.5),
    scheme: GradientTable | Preset | None = None,
    snr: float | tuple[float, float] = SNR_RANGE,
    affine: Tensor | None = None,
    device: str | torch.device = "cpu",
) -> Subject:
    """Simulate the subject of `seed`; every argument left out is drawn from the seed.

    shape: voxels.  scheme: table in the world frame, or a preset; None is "random".  snr: of the mean
    white-matter b0, a value or a range.  affine: (4, 4), overrides `spacing_mm`; None is oblique,
    left- or right-handed.  Head, fibres and contrast depend on the seed alone, not on grid, table or SNR.
    """
    if len(shape) != 3 or min(shape) < 2:
        raise ValueError(f"shape: {tuple(shape)}, expected three sizes of at least 2")
    table = (
        scheme
        if isinstance(scheme, GradientTable)
        else draw_scheme(stage_rng(seed, "scheme"), scheme or "random")
    )
    if affine is None:
        affine = draw_affine(stage_rng(seed, "affine"), shape, spacing_mm)
    affine = torch.as_tensor(affine).double().cpu()
    grid_rotation(affine)  # refuses singular and non-finite grids
    anatomy, contrast = Anatomy.draw(seed), Contrast.draw(seed)
    points = voxel_centres(affine.to(device), shape)
    fractions = anatomy.voxel_fractions(affine.to(device), shape)
    micro = Microstructure.build(seed, anatomy, contrast, points_world=points, fractions=fractions)
    clean, level = _scan(seed, micro, contrast, table, points)
    snr_value = _draw_snr(seed, snr)
    noisy = _noisy(seed, clean.reshape(-1, *shape), level / snr_value)
    truth = _ground_truth(seed, anatomy, micro, fractions, points)
    volumes = {k: v.reshape(*v.shape[:-1], *shape).contiguous() for k, v in truth.items()}
    parameters = {"Seed": seed, "SNR": snr_value, "SignalLevel": level, "Contrast": contrast.parameters()}
    return Subject(
        image=MetaTensor(noisy, affine=affine),
        clean=clean.reshape(-1, *shape),
        table=table,
        affine=affine,
        parameters=parameters | {"PeakRule": PEAK_RULE},
        **volumes,
    )


def _scan(
    seed: Seed, micro: Microstructure, contrast: Contrast, table: GradientTable, points: Tensor
) -> tuple[Tensor, float]:
    """Noise-free scan (N, V) in scanner units, and its mean b0 signal in white matter."""
    level = float(stage_rng(seed, "gain").uniform(300, 1500))
    scale = level / contrast.s0("wm")
    inside = simulate(micro, contrast, table) * (scale * receive_bias(seed, points[micro.index])).unsqueeze(1)
    scan = points.new_zeros(len(table), len(points))
    scan[:, micro.index] = inside.T
    return scan, level


def _noisy(seed: Seed, clean: Tensor, sigma: float) -> Tensor:
    generator = torch.Generator(clean.device).manual_seed(int(stage_rng(seed, "noise").integers(2**31)))
    return rician(clean, sigma=sigma, generator=generator)


def _draw_snr(seed: Seed, snr: float | tuple[float, float]) -> float:
    low, high = snr if isinstance(snr, tuple) else (snr, snr)
    if not 0 < low <= high:
        raise ValueError(f"snr: {snr}, expected a positive number or an ascending range")
    return float(stage_rng(seed, "snr").uniform(low, high))


def _ground_truth(
    seed: Seed, anatomy: Anatomy, micro: Microstructure, fractions: Tensor, points: Tensor
) -> dict[str, Tensor]:
    """Labels over the flattened grid (..., V)."""
    inside = dict(zip(TISSUES, fractions, strict=True))
    outside = inside["bone"] + inside["scalp"] + inside["air"]
    dseg = torch.stack([outside, inside["wm"], inside["gm"], inside["csf"]]).argmax(dim=0)
    lesion = (Lesions.draw(seed, anatomy).at(points) >= 0.5) & (dseg == 1)
    count, found = find_peaks(
        micro, min_fraction=PEAK_RULE["MinimumFraction"], min_angle_deg=PEAK_RULE["MinimumAngleDeg"]
    )
    npeaks = torch.zeros_like(dseg)
    npeaks[micro.index] = count
    peaks = torch.full((9, len(points)), torch.nan, device=points.device)
    present = found.norm(dim=2, keepdim=True) > 0
    peaks[:, micro.index] = found.where(present, torch.nan).flatten(1).T
    return {
        "dseg": dseg.byte(),
        "lesion": lesion.byte(),
        "npeaks": npeaks.byte(),
        "peaks_world": peaks,
        "brain_mask": (dseg > 0).byte(),
    }
