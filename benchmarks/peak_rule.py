"""How peaks are found best, chosen in simulated voxels: what counts as one, and the share of deconvolution; JSON lines.

The voxels are drawn aside from those of training; truth is the rule of the phantom's heads (`PEAK_RULE`), without
fibres below the part of the largest that deconvolution counts from (`PeakRule`).  number: share of the voxels with
fibres whose number, 1 to 3, is right; macro_f1: of the number, 0 to 3, in all voxels; recall, false: share of the true
peaks within 20 degrees of a found one, and of the found ones far from all true, in voxels of several fibres; angle_deg:
median angle between the largest peaks, where the prediction is mostly white matter.  score, by which the last line is
chosen: mean of number, macro_f1 and the harmonic mean of recall and 1 - false.  What is used stands in
`dmri_monai.qspace.fibre_density`, whose figures the first line has; with --shares, a line for each share of the
deconvolved density instead, by these thresholds.

Run: python -m benchmarks.peak_rule [MODEL] [--all] [--shares NETWORK.pt]; MODEL: of task fod, by default the released
one; NETWORK.pt: what `benchmarks/voxelwise_training.py` wrote
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.real.compare import load
from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.metrics.classes import confusion_matrix, f1_scores
from dmri_monai.networks import AnyProtocolUNet
from dmri_monai.networks.voxels_first import CHUNK
from dmri_monai.networks.voxelwise import VoxelwiseNet, mixed
from dmri_monai.phantom.voxel_signals import Voxels, draw_batch
from dmri_monai.prediction import load_model
from dmri_monai.qspace import fibre_density
from dmri_monai.qspace.peaks import harmonic_peaks
from dmri_monai.reference.deconvolution import PeakRule

SEED, PROTOCOLS, VOXELS = 1 << 42, 96, 128
SCAN = (8, 4, VOXELS // 32)  # the voxels of a protocol as a volume
NEAR_DEGREES = 20.0
USED = (fibre_density.RELATIVE, fibre_density.ABSOLUTE)
SHARES = (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)
CHOICES = ((0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4), (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="fod")
    parser.add_argument("--all", action="store_true", help="a line for every choice")
    parser.add_argument("--shares", type=Path, metavar="NETWORK.pt")
    options = parser.parse_args()
    if options.shares:
        for line in of_shares(load(options.shares)):
            print(json.dumps(line), flush=True)
        return
    model = load_model(options.model, "cpu")
    batch = draw_batch(
        SEED,
        PROTOCOLS,
        VOXELS,
        slots=model.spec.slots,
        l_max=model.spec.l_max,
        rescaled=model.spec.deconvolution,
    )
    with torch.no_grad():
        scans = batch.channels.unflatten(1, (PROTOCOLS, *SCAN)).movedim(1, 0)
        network = model.network
        assert isinstance(network, AnyProtocolUNet)
        fields = network.alone(scans)[:, network.told :][:, :45]  # these voxels are no neighbours
        density = fields.movedim(1, 0).flatten(1)
    print(json.dumps(best_rule(density, batch.voxels, options.all)), flush=True)


@torch.no_grad()
def of_shares(network: VoxelwiseNet) -> Iterator[dict[str, float]]:
    """A line for each share of the deconvolved density."""
    if not network.deconvolution:
        raise SystemExit("the network of --shares has no deconvolution, so there is nothing to share")
    batch = draw_batch(SEED, PROTOCOLS, VOXELS, rescaled=True)
    parts = [network.learned(part) for part in batch.channels.unsqueeze(0).split(CHUNK, dim=2)]
    for share in SHARES:
        density = torch.cat(
            [mixed(learned, found, share) for learned, found in parts if found is not None], 2
        )
        yield {"share": share, **measured(USED, density[0, :45], *compared(density[0, :45], batch.voxels))}


def best_rule(density: Tensor, voxels: Voxels, every: bool = False) -> dict[str, float]:
    """The best choice for densities (45, V); the line of what is used is printed, and with `every` all others."""
    lines = []
    known = compared(density, voxels)
    for rule in (USED, *product(*CHOICES)):
        lines.append(measured(rule, density, *known))
        if every or rule is USED:
            print(json.dumps(lines[-1]), flush=True)
    return max(lines, key=lambda line: line["score"])


def compared(density: Tensor, voxels: Voxels) -> tuple[Tensor, Tensor, Tensor]:
    """Amplitudes (V, 3) of all peaks, angles (V, 3, 3) in degrees from each to the true ones, true number (V,)."""
    peaks = harmonic_peaks(density, separation_degrees=fibre_density.SEPARATION_DEGREES)
    _, true = voxels.peaks()
    size = true.norm(dim=2)
    number = ((size > 0) & (size >= PeakRule().relative * size[:, :1])).sum(1)
    found, axes = peaks.directions.transpose(1, 2), true.transpose(1, 2)
    angles = axial_angle_deg(found.unsqueeze(3), axes.unsqueeze(2))
    return peaks.amplitudes, angles, number


def measured(
    rule: tuple[float, float], density: Tensor, height: Tensor, angles: Tensor, number: Tensor
) -> dict[str, float]:
    relative, absolute = rule
    matches, fraction = angles <= NEAR_DEGREES, density[0] * math.sqrt(4 * math.pi)
    kept = (height > absolute) & (height >= relative * height[:, :1]) & (height > 0)
    kept &= (fraction > fibre_density.LEAST_FRACTION).unsqueeze(1)
    there = torch.arange(3) < number.unsqueeze(1)
    several = number > 1
    recall = (matches & kept.unsqueeze(2)).any(1)[several][there[several]].float().mean()
    true = (matches & there.unsqueeze(1)).any(2)[several][kept[several]].float().mean()
    same = (kept.sum(1) == number)[number > 0].float().mean()
    macro_f1 = f1_scores(confusion_matrix(kept.sum(1), number, 4)).mean()
    line: dict[str, float | Tensor] = {
        "relative": relative,
        "absolute": absolute,
        "number": same,
        "macro_f1": macro_f1,
        "recall": recall,
        "false": 1 - true,
        "angle_deg": angles[:, 0, 0][(fraction > 0.5) & (number > 0)].median(),
        "score": (same + macro_f1 + 2 * recall * true / (recall + true)) / 3,
    }
    return {name: round(float(value), 4) for name, value in line.items()}


if __name__ == "__main__":
    main()
