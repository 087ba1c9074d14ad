"""Picture of one test subject of `make demo`: mean b0, direction-encoded FA, predicted and true tissue.

Run: python -m benchmarks.demo_picture OUT.png [--demo demo] [--subject sub-12]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import torch

from dmri_monai.io import read_nifti
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.reference import fibres
from dmri_monai.report import Cut
from dmri_monai.report.colour import class_colours, direction_colours
from dmri_monai.scan import Scan

CLASSES = [1, 2, 3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--demo", type=Path, default=Path("demo"))
    parser.add_argument("--subject", default="sub-12")
    options = parser.parse_args()
    mpl.use("Agg")
    from matplotlib import pyplot

    name, data = options.subject, options.demo / "data"
    scan = Scan.read(data / name / "dwi" / f"{name}_dwi.nii.gz")
    b0 = mean_b0(scan.signal, scan.table.bvals)
    maps = fibres._tensor_maps(scan.signal, scan.table, head_mask(b0))
    colours = direction_colours(maps.fa[0, 0], maps.v1[0])
    found, truth = (
        read_nifti(folder / f"{name}_dseg.nii.gz")[0].as_tensor()
        for folder in (
            options.demo / "runs" / "inference",
            data / "derivatives" / "ground-truth" / name / "dwi",
        )
    )
    cut = Cut(scan.affine, b0.shape)
    figure, panels = pyplot.subplots(1, 4, figsize=(9.9, 3.2), constrained_layout=True, facecolor="white")
    for panel, title in zip(
        panels, ("Mean b0", "Direction-encoded FA", "Prediction", "Ground truth"), strict=True
    ):
        panel.set_xlabel(title, loc="left")
    cut.show(panels[0], b0)
    cut.show(panels[1], colours)
    for panel, tissue in zip(panels[2:], (found, truth), strict=True):
        cut.show(panel, tinted(b0, tissue))
    figure.savefig(options.out, dpi=100)


def tinted(b0: torch.Tensor, tissue: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z, 3): the b0, half of it in the colour of its tissue."""
    grey = (b0 / b0.quantile(0.995)).clamp(0, 1)[..., None].expand(*b0.shape, 3).clone()
    for number, colour in class_colours(CLASSES).items():
        grey[tissue == number] = grey[tissue == number] / 2 + torch.tensor(colour) / 510
    return grey


if __name__ == "__main__":
    main()
