"""What fills the voxels: compartments with their volumes, directions, diffusivities and relaxation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.phantom.anatomy import TISSUES, Anatomy
from dmri_monai.phantom.bundles import MAX_POPULATIONS, fibre_populations
from dmri_monai.phantom.fields import Seed, SmoothField, stage_rng
from dmri_monai.phantom.lesions import Lesions

__all__ = ["PEAK_RULE", "Contrast", "Microstructure", "find_peaks"]

PEAK_RULE = {"MinimumFraction": 0.1, "MinimumAngleDeg": 25.0}


@dataclass(frozen=True)
class Contrast:
    """One subject's tissue constants: diffusivities in um²/ms, proton densities relative to water."""

    d_parallel: float
    d_perpendicular: float
    intra_fraction: float
    dispersion: float
    d_gm: float
    gm_anisotropy: float
    d_csf: float
    d_lesion: float
    d_scalp: float
    lesion_loss: float
    te_ms: float
    tr_ms: float
    t2_ms: dict[str, float]
    t1_ms: dict[str, float]
    proton_density: dict[str, float]

    @classmethod
    def draw(cls, seed: Seed) -> Contrast:
        """Grey and white matter get nearly the same mean diffusivity and b0: only anisotropy tells them apart."""
        rng = stage_rng(seed, "contrast")
        parallel, perpendicular, intra = (
            rng.uniform(1.6, 1.8),
            rng.uniform(0.65, 0.8),
            rng.uniform(0.42, 0.5),
        )
        md_wm = intra * parallel / 3 + (1 - intra) * (parallel + 2 * perpendicular) / 3
        t2_wm = rng.uniform(72, 84)
        t2 = {"wm": t2_wm, "gm": t2_wm * rng.uniform(1.0, 1.08), "csf": 1200.0, "scalp": 45.0}
        return cls(
            d_parallel=float(parallel),
            d_perpendicular=float(perpendicular),
            intra_fraction=float(intra),
            dispersion=float(rng.uniform(0.16, 0.26)),
            d_gm=float(md_wm * rng.uniform(0.86, 0.98)),
            gm_anisotropy=float(rng.uniform(0.2, 0.36)),
            d_csf=3.0,
            d_lesion=float(rng.uniform(1.3, 1.7)),
            d_scalp=float(rng.uniform(0.5, 0.9)),
            lesion_loss=float(rng.uniform(0.4, 0.65)),
            te_ms=float(rng.uniform(75, 95)),
            tr_ms=float(rng.uniform(2400, 4200)),
            t2_ms={k: float(v) for k, v in (t2 | {"lesion": t2_wm * rng.uniform(1.4, 1.9)}).items()},
            t1_ms={"wm": 850.0, "gm": 1350.0, "csf": 4000.0, "scalp": 350.0, "lesion": 1250.0},
            proton_density={"wm": 0.70, "gm": 0.755, "csf": 1.0, "scalp": 0.35, "lesion": 0.80},
        )

    def s0(self, tissue: str) -> float:
        """Spin-echo signal without diffusion weighting, PD (1 - exp(-TR / T1)) exp(-TE / T2)."""
        recovery = 1 - math.exp(-self.tr_ms / self.t1_ms[tissue])
        return self.proton_density[tissue] * recovery * math.exp(-self.te_ms / self.t2_ms[tissue])

    def parameters(self) -> dict[str, object]:
        """For the sidecar."""
        return asdict(self)


@dataclass(frozen=True)
class Microstructure:
    """Compartments of the P voxels inside the head; all volumes are fractions of the voxel.

    index (P,): place in the flattened grid.  fibre_volumes (P, 3), fibre_directions (P, 3, 3), world frame.
    radial (P, 3): weak preferred direction of grey matter.  intra (P,): share of the fibres inside axons.
    dispersion (P,): orientation variance of every population, rad² per axis.
    extra_diffusivity (P,) um²/ms and gain (P,): smooth variation shared by all tissues.
    """

    index: Tensor
    fibre_volumes: Tensor
    fibre_directions: Tensor
    gm: Tensor
    csf: Tensor
    lesion: Tensor
    scalp: Tensor
    radial: Tensor
    intra: Tensor
    dispersion: Tensor
    extra_diffusivity: Tensor
    gain: Tensor

    @classmethod
    def build(
        cls, seed: Seed, anatomy: Anatomy, contrast: Contrast, *, points_world: Tensor, fractions: Tensor
    ) -> Microstructure:
        """Subject `seed`'s microstructure at voxel centres (V, 3), world mm, of tissue `fractions` (6, V)."""
        index = torch.nonzero(fractions[TISSUES.index("air")] < 0.99).flatten()
        points, inside = points_world[index], dict(zip(TISSUES, fractions[:, index], strict=True))
        loss = contrast.lesion_loss * Lesions.draw(seed, anatomy).at(points)
        volumes, directions = _fibres(anatomy, points, inside["wm"])
        rng = stage_rng(seed, "texture")
        smooth = SmoothField.draw(rng, n_waves=12, wavelength_mm=(20.0, 60.0), channels=4)(points)
        smooth = smooth.clamp(-2, 2)
        return cls(
            index=index,
            fibre_volumes=volumes * (1 - loss).unsqueeze(1),
            fibre_directions=directions,
            gm=inside["gm"],
            csf=inside["csf"],
            lesion=inside["wm"] * loss,
            scalp=inside["scalp"],
            radial=torch.nn.functional.normalize(points, dim=1),
            intra=contrast.intra_fraction + 0.06 * smooth[:, 0],
            dispersion=contrast.dispersion * torch.exp(0.5 * smooth[:, 3]),
            extra_diffusivity=0.04 * smooth[:, 1],
            gain=1 + 0.05 * smooth[:, 2],
        )


def _fibres(anatomy: Anatomy, points: Tensor, wm: Tensor) -> tuple[Tensor, Tensor]:
    """Volumes (P, 3) and directions (P, 3, 3), computed only where there is white matter."""
    volumes = wm.new_zeros(len(wm), MAX_POPULATIONS)
    directions = wm.new_tensor([1.0, 0, 0]).expand(len(wm), MAX_POPULATIONS, 3).clone()
    white = wm > 1e-3
    shares, directions[white] = fibre_populations(anatomy, points[white])
    volumes[white] = shares * wm[white].unsqueeze(1)
    return volumes, directions


def find_peaks(volumes: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Number of peaks (P,) int and peaks (P, 3, 3) of populations, largest first, zero rows for none.

    volumes (P, 3): fractions of the voxel, largest first.  directions (P, 3, 3): unit, any frame.
    A population is a peak if its volume reaches the fraction of `PEAK_RULE` and it lies at least the rule's angle from
    every larger peak.  The length of a peak is its volume fraction.
    """
    cosine = torch.einsum("pid,pjd->pij", directions, directions).abs()
    apart = cosine <= float(np.cos(np.deg2rad(PEAK_RULE["MinimumAngleDeg"])))
    counts = volumes >= PEAK_RULE["MinimumFraction"]
    for j in range(1, MAX_POPULATIONS):
        for i in range(j):
            counts[:, j] &= apart[:, i, j] | ~counts[:, i]
    order = (~counts).to(torch.uint8).argsort(dim=1, stable=True)
    peaks = directions * (volumes * counts).unsqueeze(-1)
    return counts.sum(dim=1), peaks.gather(1, order.unsqueeze(-1).expand(-1, -1, 3))
