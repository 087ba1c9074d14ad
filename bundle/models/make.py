"""Make models of any protocol from nothing: train, describe; resumable.

    voxelwise.pt    `benchmarks/voxelwise_training.py`: each voxel alone, on simulated voxels
    neighbours.pt   `benchmarks/neighbour_training.py`: its densities among those around them, on streamed heads
    fod             the network of both; orientation, crossings: what follows from it
    tissue-voxelwise, fractions-voxelwise   the fractions of the voxel-wise network, for blocks
    heads.pt        `benchmarks/tissue_training.py`: invariants of whole heads, on streamed heads
    tissue, fractions   the network of heads.pt, its answers in the order of each task

A training that was interrupted goes on; one that has ended is not repeated.

Run: python bundle/models/make.py RUNS [--anatomy DIR --peaks FILE --fa FILE] [--only fod]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.released import FOR_BLOCKS
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.training_range import TrainingRange
from dmri_monai.inference.weights import save_model
from dmri_monai.networks import AnyProtocolUNet, InvariantUNet
from dmri_monai.networks.voxelwise import DECONVOLVED, VoxelwiseNet
from dmri_monai.phantom.voxel_signals import draw_batch

ROOT = Path(__file__).parents[2]
NETWORK = {"channels": 10, "hidden": 20, "blocks": 2, "deconvolution": True}
TRAININGS = {
    "voxelwise": "benchmarks.voxelwise_training",
    "neighbours": "benchmarks.neighbour_training",
    "heads": "benchmarks.tissue_training",
}
STEPS = {"voxelwise": 3000, "neighbours": 400, "heads": 300}
ALONE = ("4x0e", "4x0e")  # levels of a network whose surroundings say nothing
# what `phantom.protocols`, `phantom.voxel_signals` and `phantom.head_protocol` draw
VOXELS_SEEN = TrainingRange(directions=(6, 220), bval=(100, 6000), snr=(8, 45))
HEADS_SEEN = TrainingRange(directions=(6, 32), bval=(500, 3200), voxel_mm=(1.5, 6.0), snr=(6, 110))
FROM_DENSITY = ("fod", "orientation", "crossings")
ORDERS = {
    "tissue": (0, 1, 2, 3),
    "fractions": (1, 2, 3, 0),
}  # of the classes outside, white matter, grey matter, CSF
# chosen on simulated heads, see the card: share of a scan's own statistics; what is added to the logit of "outside"
OWN_STATISTICS, OUTSIDE = 0.25, 1.0
# chosen on simulated heads, see the card: share of the deconvolved density, and how much less neighbours count than
# they have learned to
SHARE, STRENGTH = 0.6, 0.5
# share of the voxels with signal: the networks leave 11 to 18 % (tissue) and 7 to 12 % (fractions) of brains that
# median_otsu extracted from 13 real scans, 25 and 21 % or more of whole heads in air of 0
MOST_LEFT = {"tissue": 0.21, "fractions": 0.165}
BODY_MM = 5.0  # see the card: depth of the opening that parts a brain from what touches it
FIT_SEED = 1 << 41


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--anatomy", type=Path, help="folder of T1-weighted images")
    parser.add_argument("--peaks", type=Path)
    parser.add_argument("--fa", type=Path)
    parser.add_argument(
        "--only",
        nargs="*",
        default=["fod"],
        help="of fod (and what follows from it, and the voxel-wise models), tissue, fractions",
    )
    parser.add_argument("--out", type=Path, help="folder of the models; by default RUNS/models")
    options = parser.parse_args()
    torch.manual_seed(0)  # of weights that say nothing but are written
    out = options.out or options.runs / "models"
    out.mkdir(parents=True, exist_ok=True)
    sources = [(f"--{name}", getattr(options, name)) for name in ("anatomy", "peaks", "fa")]
    given = [str(part) for pair in sources if pair[1] for part in pair]
    bank = str(options.runs / "heads")
    if "fod" in options.only:
        voxelwise, neighbours = options.runs / "voxelwise.pt", options.runs / "neighbours.pt"
        _trained("voxelwise", voxelwise, [str(voxelwise), "--network", json.dumps(NETWORK)])
        state = torch.load(voxelwise, weights_only=True)
        alone = options.runs / "alone.pt"
        save_model(density_network(state, SHARE), alone, density_spec(state["network"]))
        _trained("neighbours", neighbours, [bank, str(alone), str(neighbours), *given])
        trained = torch.load(neighbours, weights_only=True)
        for task in FROM_DENSITY:
            spec = density_spec({**state["network"], "neighbours": trained["neighbours"]}, task)
            save_model(fod_network(spec, trained["model"]), out / f"{task}.pt", spec)
        for task in ORDERS:
            spec = density_spec(state["network"], task)
            save_model(fractions_network(spec, state["model"]), out / f"{FOR_BLOCKS[task]}.pt", spec)
    if not {"tissue", "fractions"} & set(options.only):
        return
    heads = options.runs / "heads.pt"
    _trained("heads", heads, [bank, str(heads), *given])
    state = torch.load(heads, weights_only=True)
    for task in ("tissue", "fractions"):
        if task in options.only:
            spec = heads_spec(task, state["network"])
            save_model(heads_network(spec, state["model"]), out / f"{task}.pt", spec)


def _trained(kind: str, out: Path, arguments: list[str]) -> None:
    """Run the training unless `out` holds its last step."""
    if out.exists() and torch.load(out, weights_only=True)["step"] >= STEPS[kind]:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", TRAININGS[kind], *arguments, "--steps", str(STEPS[kind])]
    subprocess.run(command, cwd=ROOT, check=True)


def density_spec(network: dict[str, Any], task: str = "fod") -> ModelSpec:
    return ModelSpec(
        task=task,
        learned="fod" if task in ("orientation", "crossings") else None,
        architecture="any",
        size=ALONE,
        network_options=network,
        spacing_mm=None,  # voxels of any size: nothing is gained by another grid
        trained_on=VOXELS_SEEN,
    )


def heads_spec(task: str, network: dict[str, Any]) -> ModelSpec:
    return ModelSpec(
        task=task,
        architecture="invariants",
        size=network["size"],
        network_options={"own_statistics": OWN_STATISTICS, "outside": ORDERS[task].index(0)},
        l_max=2,
        body_mm=BODY_MM,
        fill_extracted=MOST_LEFT[task],
        trained_on=HEADS_SEEN,
    )


def density_network(state: dict[str, Any], share: float = DECONVOLVED) -> AnyProtocolUNet:
    """The network of task `fod` whose answer is the density of a `VoxelwiseNet`, with `share` of the deconvolved one.

    Where that one has the softmax of the fractions, this one has what is linear in the scalars: the least-squares fit
    on simulated voxels.  So degree 0, and by how much the deconvolved density counts; the rest are the same numbers.
    """
    own = VoxelwiseNet(**state["network"])
    own.load_state_dict(state["model"])
    network = build_network(density_spec(state["network"]))
    assert isinstance(network, AnyProtocolUNet)
    network.load_voxelwise(state["model"])
    weight, bias = mass_row(own)
    turned = network.state_dict()
    for name, first in (("weight", weight[None]), ("bias", bias[None])):
        rows = state["model"][f"density.weights.{name}"]
        if own.deconvolution:
            of_degrees = rows.unflatten(0, (-1, own.features.channels))
            added = (share * math.sqrt(4 * math.pi) * first).expand(len(of_degrees), *first.shape)
            rows = torch.cat([(1 - share) * of_degrees, added], dim=1).flatten(0, 1)
        turned[f"head.voxel.weights.{name}"] = torch.cat([first, rows])
    network.load_state_dict(turned)
    return network


def fod_network(spec: ModelSpec, trained: dict[str, Tensor], strength: float = STRENGTH) -> AnyProtocolUNet:
    """The network of `benchmarks/neighbour_training.py`, whose neighbours weigh `strength` of what they learned."""
    network = build_network(spec)
    assert isinstance(network, AnyProtocolUNet)
    weaker = {name: value + math.log(strength) for name, value in trained.items() if name.endswith(".level")}
    network.load_state_dict({**trained, **weaker})
    return network


def fractions_network(spec: ModelSpec, state: dict[str, Tensor]) -> AnyProtocolUNet:
    """The network of task `spec.task` whose logits are those of a `VoxelwiseNet`'s fractions."""
    network = build_network(spec)
    assert isinstance(network, AnyProtocolUNet)
    network.load_voxelwise(state)
    assert spec.task is not None
    order = [(c - 1) % len(ORDERS[spec.task]) for c in ORDERS[spec.task]]  # its own: WM, GM, CSF, other
    rows = {
        f"head.voxel.weights.{name}": state[f"fractions.weights.{name}"][order] for name in ("weight", "bias")
    }
    network.load_state_dict({**network.state_dict(), **rows})
    return network


@torch.no_grad()
def mass_row(own: VoxelwiseNet) -> tuple[Tensor, Tensor]:
    """Weights (scalars,) and bias of the density's degree 0."""
    batch = draw_batch(FIT_SEED, 64, 128, rescaled=own.deconvolution)
    scalars, _ = own.features(batch.channels.unsqueeze(0))
    target = own.learned(batch.channels.unsqueeze(0))[0][0, 0]
    design = torch.cat([scalars[0].T, torch.ones(scalars.shape[2], 1)], dim=1)
    solution = torch.linalg.lstsq(design, target.unsqueeze(1)).solution[:, 0]
    return solution[:-1], solution[-1]


def heads_network(spec: ModelSpec, state: dict[str, Tensor]) -> InvariantUNet:
    """The network of task `spec.task` from the one that was trained on heads."""
    network = build_network(spec)
    assert isinstance(network, InvariantUNet)
    order = list(ORDERS[spec.task])
    turned = {name: v[order] if name.startswith("head.") else v for name, v in state.items()}
    if spec.task == "tissue":  # fractions are volumes, which a shifted border would change
        turned["head.bias"] = turned["head.bias"] + OUTSIDE * functional.one_hot(torch.tensor(0), len(order))
    network.load_state_dict(turned)
    return network


if __name__ == "__main__":
    main()
