"""How much of an image's own statistics, and which shift of the border of the brain, tell tissues best; JSON lines.

On cubes of simulated heads that no training has seen, as `benchmarks/tissue_training.py` validates on them: Dice of WM,
GM and CSF and the share of the tissue that lies outside, as they are and with twice the changes of contrast of a
training; the statistics are those of a cube.  outside_logit: added to the logit of "outside", beside what the model
has already.

Run: python -m benchmarks.own_statistics CACHE [MODEL] [--anatomy DIR --peaks FILE --fa FILE] [--cubes 8]
"""

from __future__ import annotations

import argparse
import json
import logging
from itertools import product
from pathlib import Path

import torch

from benchmarks.tissue_training import ASIDE_SEED, cubes, validated
from dmri_monai.inference.architectures import build_network
from dmri_monai.networks import InvariantUNet
from dmri_monai.phantom.head_bank import HeadSources, head_models
from dmri_monai.prediction import load_model

SHARES, SHIFTS = (0.0, 0.125, 0.25, 0.5, 1.0), (-1.0, 0.0, 1.0)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, help="folder of heads, made where it lacks them")
    parser.add_argument(
        "model", nargs="?", default="tissue", help="of task tissue and architecture invariants"
    )
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--peaks", type=Path)
    parser.add_argument("--fa", type=Path)
    parser.add_argument("--cubes", type=int, default=8, help="each of a scan of its own")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    model = load_model(options.model, "cpu")
    if model.spec.task != "tissue" or not isinstance(model.network, InvariantUNet):
        parser.error(
            f"{options.model} is of task {model.spec.task}, expected tissue by architecture invariants"
        )
    heads = head_models(options.cache, HeadSources(options.anatomy, options.peaks, options.fa))
    aside = [cubes(heads, ASIDE_SEED, i)[0] for i in range(options.cubes)]
    outside = int(model.spec.network_options.get("outside", 0))
    for share, shift in product(SHARES, SHIFTS):
        changed = {**model.spec.network_options, "own_statistics": share}
        network = build_network(model.spec.replace(network_options=changed))
        assert isinstance(network, InvariantUNet)
        network.load_state_dict(model.network.state_dict())
        assert isinstance(network.head, torch.nn.Conv3d)
        assert network.head.bias is not None
        network.head.bias[outside] += shift
        line = {"own_statistics": share, "outside_logit": shift, **validated(network, aside)}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
