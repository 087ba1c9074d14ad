"""How much of the deconvolved density, and how much of the neighbours, tell fibres best; JSON lines.

On crops of simulated heads that no training has seen, what `found_fibres` of `benchmarks/neighbour_training.py` tells
for each share of the deconvolved density and each strength: by what the weights of neighbours are multiplied, 0 for
none.  score: mean of number and of the harmonic mean of recall and 1 - false.

Run: python -m benchmarks.neighbour_strength CACHE VOXELWISE.pt NEIGHBOURS.pt [--scans 12]
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from runpy import run_path

import torch

from benchmarks.neighbour_training import ASIDE_SEED, crops, found_fibres, with_neighbours
from dmri_monai.phantom.head_bank import head_models
from dmri_monai.prediction import TrainedModel

MAKE = Path(__file__).parents[1] / "bundle" / "models" / "make.py"
SHARES, STRENGTHS = (0.3, 0.5, 0.6, 0.7, 0.85), (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, help="folder of heads")
    parser.add_argument("voxelwise", type=Path, help="of benchmarks/voxelwise_training.py")
    parser.add_argument("neighbours", type=Path, help="of benchmarks/neighbour_training.py")
    parser.add_argument("--scans", type=int, default=12)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    make, heads = run_path(str(MAKE)), head_models(options.cache)
    voxelwise = torch.load(options.voxelwise, weights_only=True)
    trained = torch.load(options.neighbours, weights_only=True)["model"]
    layers = {name: value for name, value in trained.items() if name.startswith("neighbours.")}
    spec = make["density_spec"](voxelwise["network"])
    aside = []
    for share in SHARES:
        density = make["density_network"](voxelwise, share)
        network = with_neighbours(TrainedModel(spec, density, torch.device("cpu"), options.voxelwise))
        network.load_state_dict(layers, strict=False)
        model = TrainedModel(spec, network, torch.device("cpu"), options.voxelwise)
        if not aside:  # scans do not depend on the share
            aside = [
                crop for i in range(options.scans) for crop in crops(model, network, heads, ASIDE_SEED, i)
            ]
        seen = [
            replace(crop, fields=network.alone(crop.image.as_tensor())[:, network.told :]) for crop in aside
        ]
        for strength in STRENGTHS:
            for i, layer in enumerate(network.neighbours):
                learned = layers[f"neighbours.{i}.level"]
                layer.level.copy_(learned + math.log(strength) if strength else learned)
            found = found_fibres(network, seen, alone=strength == 0)
            true = 1 - found["false"]
            score = (found["number"] + 2 * found["recall"] * true / (found["recall"] + true)) / 2
            print(
                json.dumps({"share": share, "strength": strength, **found, "score": round(score, 4)}),
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
