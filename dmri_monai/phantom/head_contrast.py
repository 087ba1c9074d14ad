"""Relaxation and diffusion of everything in a head, drawn as widely as scanners, field strengths and people differ.

T1, T2 at 3 T: Wansapura et al. 1999; muscle, fat: Gold et al. 2004, doi:10.2214/ajr.183.2.1830343.  Diffusivities
of white and grey matter: see `phantom.mni.microstructure`.  The ranges are wider than those of healthy adults in
one scanner, on purpose: a network must not learn one contrast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.phantom.head_sampling import CLASSES

__all__ = ["HeadContrast", "draw_contrast"]

Range = tuple[float, float]
# proton density, T1 (ms), T2 (ms)
RELAXATION: dict[str, tuple[Range, Range, Range]] = {
    "wm": ((0.66, 0.74), (750, 950), (62, 84)),
    "gm": ((0.78, 0.88), (1200, 1550), (75, 105)),
    "csf": ((0.97, 1.0), (3500, 4500), (350, 1600)),
    "cord": ((0.66, 0.76), (800, 1000), (65, 85)),
    "dura": ((0.5, 0.9), (900, 2000), (30, 90)),
    "bone": ((0.05, 0.45), (300, 900), (20, 70)),
    "fat": ((0.8, 1.0), (330, 420), (60, 90)),
    "muscle": ((0.7, 0.85), (900, 1500), (26, 70)),
    "vitreous": ((0.97, 1.0), (3500, 4500), (300, 1200)),
    "mucosa": ((0.7, 0.95), (900, 2000), (45, 140)),
    "air": ((0.0, 0.0), (1000, 1000), (50, 50)),
}
# um2/ms: fast diffusivity, slow diffusivity, share of the slow.  Around the brain real scans show some of the
# brain's own decay, which neither fat nor bone has: ghosts, ringing, tails of the point spread; hence wide ranges.
DIFFUSION: dict[str, tuple[Range, Range, Range]] = {
    "wm": ((0.8, 0.8), (0.8, 0.8), (0, 0)),  # fibres have a model of their own
    "gm": ((0.85, 1.25), (0.2, 0.5), (0.05, 0.35)),
    "csf": ((2.6, 3.6), (2.0, 3.0), (0.0, 0.3)),
    "cord": ((0.7, 1.1), (0.2, 0.5), (0.2, 0.5)),
    "dura": ((0.5, 2.2), (0.1, 0.6), (0.0, 0.4)),
    "bone": ((0.3, 1.8), (0.0, 0.4), (0.0, 0.5)),
    "fat": ((0.05, 1.5), (0.0, 0.05), (0.0, 0.8)),
    "muscle": ((0.7, 2.0), (0.2, 0.8), (0.0, 0.3)),
    "vitreous": ((2.4, 3.2), (2.0, 2.8), (0.0, 0.3)),
    "mucosa": ((0.7, 2.6), (0.2, 0.9), (0.0, 0.4)),
    "air": ((1.0, 1.0), (1.0, 1.0), (0, 0)),
}
FAT_LEFT: Range = (0.005, 0.15)  # of fat's signal, by its suppression; in one scan of twelve there is none
# SD of the log signal of each tissue beyond relaxation: coils, flow, iron, magnetisation transfer
PARTICULAR = 0.12


@dataclass(frozen=True)
class HeadContrast:
    """One scan's constants.  s0 (K,) of `CLASSES`: signal without weighting, relative to relaxed water at TE = 0;
    texture (K,): SD of its smooth variation in space, log.  fast, slow, slow_share (K,): diffusivities in um2/ms.
    d_parallel, d_perpendicular (um2/ms), intra: sticks and zeppelins of white matter; dispersion: variance per axis
    (rad2).  grey_anisotropy: um2/ms along less across the cortex's normal.  deep_s0, deep_change: factor of the signal,
    and um2/ms, of deep grey matter.  te_ms, tr_ms.
    """

    s0: Tensor
    texture: Tensor
    fast: Tensor
    slow: Tensor
    slow_share: Tensor
    d_parallel: float
    d_perpendicular: float
    intra: float
    dispersion: float
    grey_anisotropy: float
    deep_s0: float
    deep_change: float
    te_ms: float
    tr_ms: float


def draw_contrast(rng: np.random.Generator) -> HeadContrast:
    """Constants of one scan."""
    te, tr = float(rng.uniform(55, 115)), float(np.exp(rng.uniform(np.log(2500), np.log(14000))))
    field = float(rng.uniform(0.75, 1.2))  # 1.5 to 7 T change relaxation together
    s0 = torch.tensor([_signal(rng, name, te, tr, field) for name in CLASSES])
    s0[CLASSES.index("fat")] *= 1.0 if rng.random() < 1 / 12 else float(rng.uniform(*FAT_LEFT))
    fast, slow, share = (
        torch.tensor([float(rng.uniform(*DIFFUSION[name][i])) for name in CLASSES]) for i in range(3)
    )
    parallel, intra = float(rng.uniform(1.4, 2.1)), float(rng.uniform(0.4, 0.68))
    texture = torch.full((len(CLASSES),), 0.3)
    texture[:3] = torch.tensor([rng.uniform(0.02, 0.10), rng.uniform(0.02, 0.10), rng.uniform(0.02, 0.15)])
    return HeadContrast(
        s0=s0,
        texture=texture,
        fast=fast,
        slow=slow,
        slow_share=share,
        d_parallel=parallel,
        d_perpendicular=parallel * (1 - intra) * float(rng.uniform(0.8, 1.3)),
        intra=intra,
        dispersion=float(np.exp(rng.uniform(np.log(0.02), np.log(0.1)))),
        grey_anisotropy=float(rng.uniform(0.15, 0.7)),
        deep_s0=float(rng.uniform(0.65, 0.95)),
        deep_change=float(rng.uniform(-0.25, -0.05)),
        te_ms=te,
        tr_ms=tr,
    )


def _signal(rng: np.random.Generator, name: str, te: float, tr: float, field: float) -> float:
    """Spin echo: PD (1 - exp(-TR / T1)) exp(-TE / T2)."""
    density, t1, t2 = (float(rng.uniform(*values)) for values in RELAXATION[name])
    fluid = name in ("csf", "vitreous")
    recovery = 1 - np.exp(-tr / (t1 if fluid else t1 / field))
    return float(
        density * recovery * np.exp(-te / (t2 * (1 if fluid else field)) + PARTICULAR * rng.normal())
    )
