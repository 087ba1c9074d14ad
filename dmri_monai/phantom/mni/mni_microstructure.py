"""Compartments of the MNI152 phantom, with parameters from the literature.

White matter: intra-axonal sticks of 1.6-1.75 um2/ms and a tortuous zeppelin around them (Zhang et al. 2012,
doi:10.1016/j.neuroimage.2012.03.072).  Mean diffusivity: 0.62-0.79 um2/ms in white matter, 0.78-1.09 in
cortical and 0.64-0.83 in deep grey matter (Helenius et al. 2002, AJNR 23:194), 3.0 in fluid at 37 degrees.
T1 and T2 at 3 T: about 830 and 80 ms in white, 1330 and 110 ms in grey matter (Wansapura et al. 1999,
doi:10.1002/(SICI)1522-2586(199904)9:4<531::AID-JMRI4>3.0.CO;2-L).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmri_monai.phantom.anatomy import TISSUES
from dmri_monai.phantom.fields import Seed, SmoothField, stage_rng
from dmri_monai.phantom.microstructure import MAX_POPULATIONS, Contrast, Microstructure
from dmri_monai.phantom.mni.mni_anatomy import MniAnatomy
from dmri_monai.phantom.mni.mni_lesions import MsLesions
from dmri_monai.phantom.mni.populations import fibre_populations

__all__ = ["build_microstructure", "draw_contrast"]

DEEP_GREY_CHANGE = -0.14  # um2/ms: deep grey matter diffuses more slowly than cortex
FANNING = 7.0  # fibres of mixed voxels at the cortex are dispersed more than deep bundles
MIXED_LOSS = 0.2  # of the intra-axonal share, times 1 - share of the largest population
FREE_WATER = (0.0, 0.025)  # share of the white matter, varying smoothly


def draw_contrast(seed: Seed, *, wide: bool = False) -> Contrast:
    """Subject `seed`'s tissue constants; `wide` draws echo time, repetition time and relaxation from the range
    of clinical and research scanners instead of one protocol's.
    """
    rng = stage_rng(seed, "mni-contrast")
    parallel, intra = rng.uniform(1.6, 1.75), rng.uniform(0.57, 0.64)
    t2_wm, field = rng.uniform(72, 84), rng.uniform(0.75, 1.15) if wide else 1.0
    te = rng.uniform(55, 115) if wide else rng.uniform(75, 95)
    tr = rng.uniform(2400, 11000) if wide else rng.uniform(6000, 9000)
    t2 = {"wm": t2_wm, "gm": t2_wm * rng.uniform(1.15, 1.4), "csf": 1200.0, "scalp": 45.0}
    t2["lesion"] = t2_wm * rng.uniform(1.3, 2.0)
    t1 = {"wm": 832.0, "gm": 1331.0, "csf": 4000.0, "scalp": 350.0, "lesion": 1250.0}
    return Contrast(
        d_parallel=float(parallel),
        d_perpendicular=float(parallel * (1 - intra)),
        intra_fraction=float(intra),
        dispersion=float(rng.uniform(0.016, 0.024)),
        d_gm=float(rng.uniform(0.82, 0.92)),
        gm_anisotropy=float(rng.uniform(0.15, 0.3)),
        d_csf=3.0,
        d_lesion=float(rng.uniform(1.1, 1.6)),
        d_scalp=float(rng.uniform(0.5, 0.9)),
        lesion_loss=float(rng.uniform(0.35, 0.65)),
        te_ms=float(te),
        tr_ms=float(tr),
        t2_ms={k: float(v * (field if k != "csf" else 1.0)) for k, v in t2.items()},
        t1_ms={k: float(v * (field if k != "csf" else 1.0)) for k, v in t1.items()},
        proton_density={"wm": 0.70, "gm": 0.82, "csf": 1.0, "scalp": 0.35, "lesion": 0.80},
    )


def build_microstructure(
    seed: Seed,
    anatomy: MniAnatomy,
    contrast: Contrast,
    lesions: MsLesions,
    *,
    points_world: Tensor,
    fractions: Tensor,
) -> Microstructure:
    """Subject `seed`'s microstructure at voxel centres (V, 3), world mm, of tissue `fractions` (6, V)."""
    index = torch.nonzero(fractions[TISSUES.index("air")] < 0.99).flatten()
    points, inside = points_world[index], dict(zip(TISSUES, fractions[:, index], strict=True))
    p = anatomy.warp.to_template(points)
    shape = anatomy.template.shape.at(p)
    volumes, directions = _fibres(anatomy, points, p, inside["wm"])
    loss = contrast.lesion_loss * lesions.at(points)
    texture = SmoothField.draw(
        stage_rng(seed, "mni-texture"), n_waves=14, wavelength_mm=(15.0, 60.0), channels=5
    )
    smooth = texture(p).clamp(-2, 2)
    water = FREE_WATER[0] + (FREE_WATER[1] - FREE_WATER[0]) * (smooth[:, 4] / 4 + 0.5)
    deep = (shape[:, 2] / 2 + 0.5).clamp(0, 1)
    mixed = 1 - volumes[:, 0] / volumes.sum(dim=1).clamp(min=1e-6)
    fanning = 1 + (1 + FANNING * mixed) * shape[:, 4].clamp(0, 1)
    return Microstructure(
        index=index,
        fibre_volumes=volumes * ((1 - loss) * (1 - water)).unsqueeze(1),
        fibre_directions=directions,
        gm=inside["gm"],
        csf=inside["csf"] + inside["wm"] * (1 - loss) * water,
        lesion=inside["wm"] * loss,
        scalp=inside["scalp"],
        radial=_normals(anatomy, points, p),
        intra=contrast.intra_fraction + 0.04 * smooth[:, 0] - MIXED_LOSS * mixed,
        dispersion=contrast.dispersion * fanning * torch.exp(0.35 * smooth[:, 3]),
        extra_diffusivity=0.02 * smooth[:, 1] + DEEP_GREY_CHANGE * deep * inside["gm"],
        gain=1 + 0.04 * smooth[:, 2],
    )


def _fibres(anatomy: MniAnatomy, points: Tensor, p: Tensor, wm: Tensor) -> tuple[Tensor, Tensor]:
    """Volumes (P, 3) and world directions (P, 3, 3), computed only where there is white matter."""
    volumes = wm.new_zeros(len(wm), MAX_POPULATIONS)
    directions = wm.new_tensor([1.0, 0, 0]).expand(len(wm), MAX_POPULATIONS, 3).clone()
    white = torch.nonzero(wm > 1e-2).flatten()
    shares, along = fibre_populations(anatomy.template, p[white])
    directions[white] = anatomy.warp.directions_to_world(points[white], along)
    volumes[white] = shares * wm[white].unsqueeze(1)
    return volumes, directions


def _normals(anatomy: MniAnatomy, points: Tensor, p: Tensor) -> Tensor:
    """(P, 3) unit world normals of the cortex: covectors turn with the transposed Jacobian, n ~ J^T m."""
    covector = anatomy.template.radial.at(p).unsqueeze(1) @ anatomy.warp.jacobian(points)
    return torch.nn.functional.normalize(covector[:, 0], dim=1)
