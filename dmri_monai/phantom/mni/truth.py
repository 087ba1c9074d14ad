"""Ground truth beside labels and peaks: compartment fractions, dispersion, deep grey matter and bundles."""

from __future__ import annotations

import torch
from torch import Tensor

from dmri_monai.phantom.anatomy import TISSUES
from dmri_monai.phantom.microstructure import Microstructure
from dmri_monai.phantom.mni.atlas import tracts
from dmri_monai.phantom.mni.mni_anatomy import MniAnatomy
from dmri_monai.phantom.mni.populations import bundle_densities

__all__ = ["MAPS", "truth_maps"]

MIN_DENSITY = 0.35  # of a bundle, whose core has 1
MAPS: dict[str, str] = {
    "probseg": "Volume fractions of white matter, grey matter and cerebrospinal fluid",
    "icvf": "Fraction of the voxel inside axons",
    "isovf": "Fraction of free water",
    "od": "Orientation dispersion of the fibres: variance per axis in rad2, 0 where there are none",
    "desc-deepgm_mask": "Deep grey matter",
    "bundles": "Bundle masks, one volume per row of bundles.tsv",
}


def truth_maps(
    anatomy: MniAnatomy, micro: Microstructure, points_world: Tensor, fractions: Tensor
) -> dict[str, Tensor]:
    """(V,) or (C, V) per name of `MAPS`, over the flattened grid of `points_world` (V, 3)."""
    fibres = micro.fibre_volumes.sum(dim=1)

    def spread(values: Tensor) -> Tensor:
        return values.new_zeros(len(points_world)).index_copy(0, micro.index, values)

    wm, gm = fractions[TISSUES.index("wm")], fractions[TISSUES.index("gm")]
    p = anatomy.warp.to_template(points_world[micro.index])
    deep = spread((anatomy.template.shape.at(p)[:, 2] > 0).float()).bool() & (gm >= 0.5)
    white = torch.nonzero(wm >= 0.5).flatten()
    bundles = torch.zeros(len(tracts()), len(points_world), dtype=torch.uint8, device=wm.device)
    inside = bundle_densities(anatomy.warp.to_template(points_world[white])) >= MIN_DENSITY
    bundles[:, white] = inside.byte()
    return {
        "probseg": fractions[:3],
        "icvf": spread(fibres * micro.intra),
        "isovf": spread(micro.csf),
        "od": spread(micro.dispersion * (fibres > 0)),
        "desc-deepgm_mask": deep.byte(),
        "bundles": bundles,
    }
