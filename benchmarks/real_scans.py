"""The released models on real scans: shares of tissue, and principal directions against DIPY's CSD, as JSON lines.

The scans are the samples that come with DIPY (`small_64D`, `small_101D`: blocks of 10 and 6 voxels per axis) and any
others named on the command line. No truth is known. angle_deg: median angle between the released orientation model and
constrained spherical deconvolution, in voxels where it finds one fibre and FA is above 0.4; chance is 60 degrees.
tensor_*: the same, in the same voxels, of a weighted tensor fit.  wm_where_anisotropic: share of these voxels
that the tissue model calls white matter.

Run: python benchmarks/real_scans.py [SCAN ...] [--figure docs/images/real-scans.png]
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dipy.data import get_fnames
from monai.data import MetaTensor
from monai.transforms import SpatialPad
from torch import Tensor

from dmri_monai import predict
from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_dwi
from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.qspace.direction_maps import tensor_volumes
from dmri_monai.qspace.tensor import fit_tensor, tensor_metrics
from dmri_monai.reference import FibreLabels, fibre_labels

AIR = 8  # voxels on every side
SAMPLES = ("small_64D", "small_101D")
ANISOTROPIC = 0.4  # FA
TISSUES = ("background", "WM", "GM", "CSF")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scans", nargs="*", type=Path)
    parser.add_argument("--orientation", type=Path, help="checkpoint; else the released one")
    parser.add_argument("--tissue", type=Path, help="checkpoint; else the released one, for blocks")
    parser.add_argument("--figure", type=Path, help="picture of the first scan")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # MONAI's go to stdout
    scans = [*(Path(get_fnames(name=name)[0]) for name in SAMPLES), *options.scans]
    for number, scan in enumerate(scans):
        image, table = read_dwi(scan)
        whole = torch.ones(image.shape[1:], dtype=torch.bool)  # blocks from inside a brain
        csd = fibre_labels(image.as_tensor(), table, mask=whole)
        found = _predict(image, table, "orientation", options.orientation)[:3]
        tissue = _predict(image, table, "tissue", options.tissue)[0]
        line = _compared(found, _principal_directions(image, table), tissue, csd)
        print(json.dumps({"scan": scan.name, **line}), flush=True)
        if options.figure and number == 0:
            _draw(options.figure, found, csd, image.affine)


def _predict(image: MetaTensor, table: GradientTable, task: str, checkpoint: Path | None) -> Tensor:
    """On the grid of `image`; for a checkpoint it is set into air: networks need more than 8 voxels along an axis."""
    air = 0 if checkpoint is None else AIR
    wide = SpatialPad([n + 2 * air for n in image.shape[1:]])(image)
    found = predict(wide, table.bvals, table.bvecs, task=task, checkpoint=checkpoint).image.as_tensor()
    return found[(slice(None), *(slice(air, n + air) for n in image.shape[1:]))]


def _principal_directions(image: MetaTensor, table: GradientTable) -> Tensor:
    """(3, X, Y, Z) in the world frame, of a weighted tensor fit."""
    rows = tensor_volumes(table)
    if rows is None:
        raise ValueError("the table does not determine a tensor")
    signal, part = image.as_tensor()[None, rows], table.select(rows)
    return tensor_metrics(fit_tensor(signal, part.bvals[None], part.bvecs[None])).v1[0]


def _compared(found: Tensor, tensor: Tensor, tissue: Tensor, csd: FibreLabels) -> dict[str, Any]:
    single = (csd.npeaks == 1) & (csd.fa > ANISOTROPIC)
    angles, fitted = (axial_angle_deg(v[:, single].T, csd.peaks_world[:3, single].T) for v in (found, tensor))
    known = angles.isfinite()
    shares = {name: float((tissue == i).float().mean()) for i, name in enumerate(TISSUES)}
    return {
        "voxels": int(single.sum()),
        "predicted": int(known.sum()),
        "angle_deg": round(float(angles[known].median()), 2),
        "below_10_deg": round(float((angles[known] < 10).float().mean()), 3),
        "tensor_angle_deg": round(float(fitted[known].median()), 2),
        "tensor_below_10_deg": round(float((fitted[known] < 10).float().mean()), 3),
        "wm_where_anisotropic": round(float((tissue[single] == 1).float().mean()), 3),
        "tissue": {name: round(share, 3) for name, share in shares.items()},
    }


def _draw(path: Path, found: Tensor, csd: FibreLabels, affine: Tensor) -> None:
    """Middle slice seen along the third axis of the grid: sticks of both, projected on its first two axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    k = csd.fa.shape[2] // 2
    axes = (affine[:3, :2] / affine[:3, :2].norm(dim=0)).float()  # world -> the grid's axes
    figure, panels = pyplot.subplots(1, 2, figsize=(8, 4.3), constrained_layout=True)
    for panel, name, field in zip(
        panels, ("CSD (DIPY)", "orientation model"), (csd.peaks_world[:3], found), strict=True
    ):
        sticks = field[..., k] / field[..., k].norm(dim=0)
        flat = torch.einsum("cxy,cd->dxy", sticks, axes).numpy()
        x, y = np.meshgrid(*map(np.arange, sticks.shape[1:]), indexing="ij")
        panel.imshow(csd.fa[..., k].T, cmap="gray", origin="lower", vmin=0, vmax=0.8)
        colours = np.nan_to_num(sticks.abs().permute(1, 2, 0).reshape(-1, 3).numpy()).clip(0, 1)
        panel.quiver(
            x, y, *flat, color=colours, headwidth=0, headlength=0, headaxislength=0, pivot="mid", scale=12
        )
        panel.set(title=name, xticks=[], yticks=[])
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
