"""Pretraining on unlabelled heads, simulated or real, by the package's own pretexts and losses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd, Spacingd
from torch import Tensor, nn

from benchmarks.experiments.arms import Arm, Pretraining, digest
from benchmarks.experiments.cases import L_MAX, Case, Scale, boxed, encoded, nearest_shell, stacked
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.fitting import train
from benchmarks.experiments.methods import METHODS, build, output
from benchmarks.experiments.runner import Runner
from dmri_monai.inference import to_device
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.io.bids import data_list
from dmri_monai.io.writing import replacing
from dmri_monai.qspace.b0 import brain_mask, mean_b0
from dmri_monai.scan import Scan as DiffusionScan
from dmri_monai.training.pretext import PretrainBatch, pretext_loss
from dmri_monai.transforms import ToVoxelFramed, collate_dwi

__all__ = ["pretrained", "spec_of"]

VALIDATORS = 3  # heads, whose draws are always the same
ARCHITECTURES = {"plain": "plain", "equivariant": "equivariant", "any": "any"}


@dataclass(frozen=True)
class Scan:
    """An unlabelled scan on a box around its brain: raw volumes (N, X, Y, Z), world table, brain (X, Y, Z) bool."""

    image: MetaTensor
    bvals: Tensor
    bvecs: Tensor
    brain: Tensor


def spec_of(method: str, bvals: Tensor) -> ModelSpec:
    """What the package's pretexts must know of the channels that a method takes of a scan."""
    architecture = ARCHITECTURES[METHODS[method].network]
    own = {"architecture": architecture, "l_max": 6 if architecture == "any" else L_MAX}
    fit = {"insufficient_directions": "zero", "shell_tolerance": 0.1, "order_scale": None}
    return ModelSpec.of({**own, **fit, "shells": [nearest_shell(bvals)]})


def pretrained(runner: Runner, arm: Arm, network: nn.Module) -> None:
    """Give `network` the weights of the arm's pretraining, all but its head; arms of other tasks share them."""
    step = arm.pretraining
    assert step is not None
    key = digest([asdict(step), arm.method, dict(arm.size), dict(arm.recipe.variant), arm.seed])
    path = runner.work / "pretrained" / f"{key}.pt"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        body, curve = _pretrain(runner, arm, step)
        with replacing(path) as (temporary,):
            torch.save(body.state_dict(), temporary)
        with replacing(path.with_suffix(".json")) as (temporary,):
            temporary.write_text(json.dumps({"pretraining": asdict(step), "curve": curve}), encoding="utf-8")
    known, own = torch.load(path, weights_only=True), network.state_dict()
    kept = {name: value for name, value in known.items() if name in own and own[name].shape == value.shape}
    if len(kept) < len(own) / 2:
        raise ValueError(f"{arm.method}: only {len(kept)} of {len(own)} weights fit those of its pretraining")
    network.load_state_dict({**own, **kept})


@dataclass(frozen=True)
class _Draw:
    """One scan as a pretext shows it: what the network takes in, the pretext's target, its loss."""

    case: Case
    target: Any
    loss: nn.Module


def _pretrain(
    runner: Runner, arm: Arm, step: Pretraining
) -> tuple[nn.Module, list[tuple[int, float, float]]]:
    method, scans = METHODS[arm.method], _scans(runner, step)
    if len(scans) <= VALIDATORS:
        raise ValueError(f"pretraining needs more than {VALIDATORS} scans, found {len(scans)}")
    specs = [spec_of(arm.method, scan.bvals) for scan in scans]
    prepare = [PretrainBatch(step.pretext, spec, step.preset) for spec in specs]  # type: ignore[arg-type]
    losses = [pretext_loss(step.pretext, spec).to(runner.device) for spec in specs]  # type: ignore[arg-type]
    clean = [_channels(scan, method.takes) for scan in scans]
    scale = Scale.of(clean)
    torch.manual_seed(arm.seed)
    network = build(method.network, clean[0].irreps, specs[0].pretext_irreps, arm.size, **arm.recipe.variant)
    network = to_device(network, runner.device)

    def drawn(number: int, seed: int) -> _Draw:
        scan, brain = scans[number], scans[number].brain.to(runner.device)
        made, target, *_ = prepare[number](_batch(scan, seed), torch.device(runner.device))
        case = scale(Case(torch.as_tensor(made)[0] * brain, clean[0].irreps, brain[None].float(), brain))
        return _Draw(stacked([case], method.multiple)[0], target, losses[number])

    def error(draw: _Draw) -> Tensor:
        pred = output(network, draw.case.image[None], draw.case.table, arm.precision)
        shape = (draw.target["image"] if isinstance(draw.target, dict) else draw.target).shape[2:]
        inner = [slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(pred.shape[2:], shape, strict=True)]
        pred = pred[:, :, *inner]
        if (
            method.takes == "harmonics"
        ):  # the network speaks of standardised channels, the loss of the scan's own
            mean, factor = (v.to(pred).view(1, -1, 1, 1, 1) for v in (scale.mean, scale.factor))
            pred = pred / factor + mean
        found: Tensor = draw.loss(pred, draw.target)
        return found

    fixed = [drawn(number, number) for number in range(VALIDATORS)]
    random = np.random.RandomState(arm.seed)

    def batches() -> list[_Draw]:
        numbers = random.randint(VALIDATORS, len(scans), step.schedule.batch)
        return [drawn(int(number), int(random.randint(2**31 - 1))) for number in numbers]

    def mean_error(batch: Sequence[_Draw]) -> Tensor:
        return torch.stack([error(draw) for draw in batch]).mean()

    curve = train(network, batches, mean_error, lambda: -float(mean_error(fixed)), step.schedule, step.rate)
    return network, curve.points


def _channels(scan: Scan, takes: str) -> Case:
    """The scan as it is, as a case."""
    framed = ToVoxelFramed("image")({"image": scan.image, "bvals": scan.bvals, "bvecs": scan.bvecs})
    image, irreps = encoded(scan.image.as_tensor(), scan.bvals, framed["bvecs_voxel"], takes)
    return Case(image * scan.brain, irreps, image[:1], scan.brain)


def _batch(scan: Scan, seed: int) -> dict[Any, Any]:
    """The scan as MONAI's engines collate it, with the seed of what a pretext draws."""
    item = ToVoxelFramed("image")({"image": scan.image, "bvals": scan.bvals, "bvecs": scan.bvecs})
    batch = collate_dwi([item])
    batch["item_seed"] = torch.tensor([seed])
    return batch


def _scans(runner: Runner, step: Pretraining) -> list[Scan]:
    """The heads of a cohort, or the real scans with cubic voxels of the step's size."""
    if isinstance(step.cohort, Cohort):
        subjects = [runner.subject(step.cohort, n) for n in range(step.cohort.subjects)]
        return [_boxed(s.image, s.table.bvals, s.table.bvecs, s.brain_mask > 0) for s in subjects]
    if runner.real is None:
        raise ValueError(f"pretraining on {step.cohort} scans needs --real, the folder of a BIDS data set")
    found = []
    for item in data_list(runner.real):
        scan = DiffusionScan.read(item["image"])
        keys = {"image": scan.image, "bvals": scan.table.bvals, "bvecs": scan.table.bvecs}
        moved = Spacingd("image", [step.spacing_mm] * 3)(Orientationd("image", "RAS", labels=None)(keys))
        image = moved["image"].clamp(min=0)
        brain = brain_mask(mean_b0(image.as_tensor(), scan.table.bvals))
        found.append(_boxed(image, scan.table.bvals, scan.table.bvecs, brain))
    return found


def _boxed(image: MetaTensor, bvals: Tensor, bvecs: Tensor, brain: Tensor) -> Scan:
    """Cut to the brain's box; the affine, which only gives the axes here, keeps its directions and spacing."""
    raw = image.as_tensor() * brain
    case = boxed(Case(raw, f"{len(raw)}x0e", raw[:1], brain))
    meta = {name: value for name, value in image.meta.items() if name != "affine"}
    return Scan(MetaTensor(case.image, affine=image.affine, meta=meta), bvals, bvecs, case.mask)
