"""Teach a model of task fod to average its densities with those around them, on streamed heads; resumable, one core.

Everything else of the network stays as it is.  Loss: 1 - the cosine between the density found and the one of the true
peaks, degree by degree, in voxels with fibres, weighted by their white matter; it tells shapes apart, whatever their
scale.  Voxels are at least `FINEST_MM` wide: fibres of heads are measured at 2.5 mm, so that finer voxels would be
more like their neighbours than real ones are.  Every `--report` steps a JSON line says the loss, and of heads kept
aside what `found_fibres` tells, before (line 0) and after.  A run that was interrupted goes on from the last report.

Run: python -m benchmarks.neighbour_training CACHE MODEL.pt OUT.pt [--anatomy DIR --peaks FILE --fa FILE] [--steps 400]
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Orientationd
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.resuming import resumed
from dmri_monai.inference.architectures import build_network
from dmri_monai.io.writing import replacing
from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.networks import AnyProtocolUNet
from dmri_monai.phantom.head_bank import HeadSources, head_models
from dmri_monai.phantom.head_model import HeadModel
from dmri_monai.phantom.microstructure import find_peaks
from dmri_monai.phantom.streamed_heads import make_head_item
from dmri_monai.prediction import TrainedModel, load_model
from dmri_monai.qspace.fibre_density import density_of_peaks, peaks_of_density
from dmri_monai.reference.deconvolution import PeakRule
from dmri_monai.transforms import DirectionsToVoxelFramed

ROUNDS = 2
SIZE, CROP, CROPS = 64, 22, 2  # voxels of a scan and of what a step sees of it, crops per scan
POOL, EVERY, ASIDE = 60, 2, 16  # crops at hand, steps from scan to scan, scans to validate on
ASIDE_SEED = 1 << 40
FINEST_MM, MOST_DIRECTIONS, ARTIFACT_SHARE = 2.3, 70, 0.2
TRUTH_SPREAD = 0.02  # rad² per axis of the true fibres: about what the densities of coherent voxels have
DEGREE_WEIGHTS = (1.0, 1.0, 0.7, 0.4)  # of l = 2, 4, 6, 8
SIZES = [2 * degree + 1 for degree in (2, 4, 6, 8)]
DECAY = 0.6  # of the steps, over which the learning rate falls
NEAR_DEGREES = 20.0
WHITE = 0.5  # white matter of the voxels whose fibres are counted


@dataclass(frozen=True)
class Crop:
    """A part of a scan in its voxel frame: what each voxel says by itself (B = 1), the true peaks (9, X, Y, Z) and
    the fraction of white matter (X, Y, Z).
    """

    image: Tensor
    fields: Tensor
    peaks: Tensor
    white: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, help="folder of heads, made where it lacks them")
    parser.add_argument("model", type=Path, help="of task fod, whose voxels are alone")
    parser.add_argument("out", type=Path)
    parser.add_argument("--anatomy", type=Path)
    parser.add_argument("--peaks", type=Path)
    parser.add_argument("--fa", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--report", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    heads = head_models(options.cache, HeadSources(options.anatomy, options.peaks, options.fa))
    train(options, load_model(options.model, "cpu"), heads)


def with_neighbours(model: TrainedModel) -> AnyProtocolUNet:
    """The network of `model` with untrained layers of neighbours, the only ones that learn."""
    spec = model.spec
    network = build_network(spec.replace(network_options={**spec.network_options, "neighbours": ROUNDS}))
    assert isinstance(network, AnyProtocolUNet)
    network.load_state_dict(model.network.state_dict(), strict=False)
    network.requires_grad_(False)
    network.neighbours.requires_grad_(True)
    return network.eval()


def train(options: argparse.Namespace, model: TrainedModel, heads: dict[str, HeadModel]) -> None:
    torch.manual_seed(options.seed)
    network = with_neighbours(model)
    optimizer = torch.optim.AdamW(network.neighbours.parameters(), lr=options.rate)
    first, seconds = resumed(options.out, network, optimizer)
    aside = [crops(model, network, heads, ASIDE_SEED, i)[0] for i in range(ASIDE)]
    if first == 0:
        print(
            json.dumps({"step": 0, "heads": sorted(heads), **found_fibres(network, aside, alone=True)}),
            flush=True,
        )
    pool: deque[Crop] = deque(maxlen=POOL)
    for i in range(
        max(0, first // EVERY - POOL // CROPS + 1), first // EVERY
    ):  # it depends on the step alone
        pool.extend(crops(model, network, heads, options.seed, i))
    started, losses = time.perf_counter() - seconds, []
    for step in range(first, options.steps):
        if step % EVERY == 0 or step == first:
            pool.extend(crops(model, network, heads, options.seed, step // EVERY))
        for group in optimizer.param_groups:
            group["lr"] = options.rate * _schedule(step / options.steps)
        crop = pool[int(np.random.default_rng((options.seed, step)).integers(len(pool)))]
        loss = loss_of(network.answer(crop.image, crop.fields)[0], crop)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.neighbours.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % options.report == 0 or step + 1 == options.steps:
            seconds = time.perf_counter() - started
            line = {"step": step + 1, "loss": round(float(np.mean(losses)), 4), "seconds": round(seconds, 1)}
            print(json.dumps({**line, **found_fibres(network, aside)}), flush=True)
            losses = []
            state = {"model": network.state_dict(), "neighbours": ROUNDS, "optimizer": optimizer.state_dict()}
            with replacing(options.out) as (temporary,):
                torch.save({**state, "step": step + 1, "seconds": seconds}, temporary)


def _schedule(done: float) -> float:
    return min(1.0, done / 0.05 + 1e-2) * min(1.0, (1 - done) / DECAY)


@torch.no_grad()
def crops(
    model: TrainedModel, network: AnyProtocolUNet, heads: dict[str, HeadModel], seed: int, number: int
) -> list[Crop]:
    """Crops with white matter of a scan of its own, as the product would present it to the network."""
    item = make_head_item(
        (seed, 2, number),
        heads,
        size=SIZE,
        artifact_share=ARTIFACT_SHARE,
        most_directions=MOST_DIRECTIONS,
        finest_mm=FINEST_MM,
    )
    labels = ("peaks", "fractions")
    turned = Compose(
        [Orientationd(labels, axcodes="RAS", labels=None), DirectionsToVoxelFramed("peaks", "peaks")]
    )
    truth = turned({key: item[key] for key in labels})
    image = model.preprocessing()({key: item[key] for key in ("image", "bvals", "bvecs")})["image"][None]
    peaks, white = truth["peaks"].as_tensor(), truth["fractions"].as_tensor()[0]
    size = [min(CROP, n) for n in white.shape]
    share = torch.nn.functional.avg_pool3d(white[None, None], size, 1)[0, 0]
    places = torch.nonzero(share > 0.25 * share.max())
    rng, found = np.random.default_rng((seed, number)), []
    for _ in range(CROPS):
        first = places[int(rng.integers(len(places)))].tolist()
        part = (..., *(slice(a, a + n) for a, n in zip(first, size, strict=True)))
        seen = image[part]
        fields = network.alone(seen.as_tensor())[:, network.told :]
        found.append(Crop(seen, fields, peaks[part], white[part]))
    return found


def loss_of(density: Tensor, crop: Crop) -> Tensor:
    """1 - cosine to the true density, of density (45, X, Y, Z)."""
    truth = density_of_peaks(torch.nan_to_num(crop.peaks), TRUTH_SPREAD)
    weight = crop.white * (truth[1:].square().sum(0) > 1e-4)
    total = density.new_zeros(())
    parts = zip(density[1:].split(SIZES), truth[1:].split(SIZES), DEGREE_WEIGHTS, strict=True)
    for ours, theirs, of_degree in parts:
        lengths = (ours.square().sum(0) + 1e-5).sqrt() * (theirs.square().sum(0) + 1e-5).sqrt()
        cosine = (ours * theirs).sum(0) / lengths
        total = total + of_degree * (weight * (1 - cosine)).sum() / weight.sum().clamp(min=1.0)
    return total / sum(DEGREE_WEIGHTS)


@torch.no_grad()
def found_fibres(network: AnyProtocolUNet, aside: Iterable[Crop], alone: bool = False) -> dict[str, Any]:
    """Fibres of the crops' white matter: loss, median angle of the main direction, share of right numbers; and in
    crossings the share of true peaks within 20 degrees of a found one and of found ones far from all true.

    alone: without the neighbours.
    """
    losses, angles, true, found = [], [], [], []
    for crop in aside:
        density = crop.fields[0, :45] if alone else network.answer(crop.image, crop.fields)[0]
        losses.append(float(loss_of(density, crop)))
        white = crop.white > WHITE
        peaks = peaks_of_density(density[:, white]).T.unflatten(1, (3, 3))
        truth = true_peaks(crop.peaks[:, white])
        angles.append(axial_angle_deg(peaks.transpose(1, 2).unsqueeze(3), truth.transpose(1, 2).unsqueeze(2)))
        found.append(~peaks[:, :, 0].isnan())
        length = truth.norm(dim=2)
        true.append((length > 0) & (length >= PeakRule().relative * length[:, :1]))
    angle, there, told = torch.cat(angles), torch.cat(true), torch.cat(found)
    near, several = angle <= NEAR_DEGREES, there.sum(1) > 1  # NaN, no peak, is not near
    figures = {
        "aside": float(np.mean(losses)),
        "angle_deg": float(angle[:, 0, 0].nanmedian()),
        "number": float((told.sum(1) == there.sum(1)).float().mean()),
        "recall": float(near.any(1)[several][there[several]].float().mean()),
        "false": 1 - float((near & there.unsqueeze(1)).any(2)[several][told[several]].float().mean()),
    }
    return {name: round(value, 4) for name, value in figures.items()}


def true_peaks(peaks: Tensor) -> Tensor:
    """(V, 3, 3) peaks, largest first, zero rows for none, of populations (9, V), by the rule of the phantom."""
    vectors = torch.nan_to_num(peaks.T.unflatten(1, (3, 3)))
    lengths, order = vectors.norm(dim=2).sort(dim=1, descending=True)
    directions = normalize(vectors, dim=2).gather(1, order.unsqueeze(2).expand(-1, -1, 3))
    return find_peaks(lengths, directions)[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
