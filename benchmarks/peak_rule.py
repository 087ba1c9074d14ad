"""How the peaks of a predicted density are counted best: the thresholds, chosen in simulated voxels, as JSON lines.

The voxels are drawn aside from those of training; truth is the rule of the phantom's heads (`PEAK_RULE`), without
fibres below the part of the largest that deconvolution counts from (`PeakRule`).  number: share of the voxels with
fibres whose number, 1 to 3, is right; macro_f1: of the number, 0 to 3, in all voxels; recall, false: share of the true
peaks within 20 degrees of a found one, and of the found ones far from all true, in voxels of several fibres.  score, by
which the last line is chosen: mean of number, macro_f1 and the harmonic mean of recall and 1 - false.  What is used
stands in `dmri_monai.qspace.fibre_density`, whose figures the first line has.

Run: python -m benchmarks.peak_rule [MODEL] [--all]; MODEL: of task fod, by default the released one
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import product

import torch
from torch import Tensor

from dmri_monai.metrics.classes import confusion_matrix, f1_scores
from dmri_monai.phantom.voxel_signals import Voxels, draw_batch
from dmri_monai.prediction import load_model
from dmri_monai.qspace import fibre_density
from dmri_monai.qspace.peaks import Peaks, harmonic_peaks
from dmri_monai.reference.deconvolution import PeakRule

SEED, PROTOCOLS, VOXELS = 1 << 42, 96, 128
SCAN = (8, 4, VOXELS // 32)  # the voxels of a protocol as a volume
NEAR_DEGREES = 20.0
USED = (fibre_density.RELATIVE, fibre_density.ABSOLUTE)
CHOICES = ((0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4), (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="fod")
    parser.add_argument("--all", action="store_true", help="a line for every choice")
    options = parser.parse_args()
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
        density = model.network(scans).movedim(1, 0).flatten(1)
    print(json.dumps(best_rule(density, batch.voxels, options.all)), flush=True)


def best_rule(density: Tensor, voxels: Voxels, every: bool = False) -> dict[str, float]:
    """The best choice for densities (45, V); the line of what is used is printed, and with `every` all others."""
    peaks = harmonic_peaks(density, separation_degrees=fibre_density.SEPARATION_DEGREES)
    _, true = voxels.peaks()
    size = true.norm(dim=2)
    number = ((size > 0) & (size >= PeakRule().relative * size[:, :1])).sum(1)
    near = torch.einsum(
        "vic,vjc->vij", peaks.directions.float(), torch.nn.functional.normalize(true, dim=2)
    ).abs()
    matches = near >= math.cos(math.radians(NEAR_DEGREES))
    lines = []
    for rule in (USED, *product(*CHOICES)):
        lines.append(_line(rule, density, peaks, matches, number))
        if every or rule is USED:
            print(json.dumps(lines[-1]), flush=True)
    return max(lines, key=lambda line: line["score"])


def _line(
    rule: tuple[float, float], density: Tensor, peaks: Peaks, matches: Tensor, number: Tensor
) -> dict[str, float]:
    relative, absolute = rule
    height = peaks.amplitudes
    kept = (height > absolute) & (height >= relative * height[:, :1]) & (height > 0)
    kept &= (density[0] * math.sqrt(4 * math.pi) > fibre_density.LEAST_FRACTION).unsqueeze(1)
    there = torch.arange(3) < number.unsqueeze(1)
    several = number > 1
    recall = (matches & kept.unsqueeze(2)).any(1)[several][there[several]].float().mean()
    true = (matches & there.unsqueeze(1)).any(2)[several][kept[several]].float().mean()
    same = (kept.sum(1) == number)[number > 0].float().mean()
    macro_f1 = f1_scores(confusion_matrix(kept.sum(1), number, 4)).mean()
    line = {
        "relative": relative,
        "absolute": absolute,
        "number": same,
        "macro_f1": macro_f1,
        "recall": recall,
        "false": 1 - true,
        "score": (same + macro_f1 + 2 * recall * true / (recall + true)) / 3,
    }
    return {name: round(float(value), 4) for name, value in line.items()}


if __name__ == "__main__":
    main()
