"""Pretraining on unlabelled heads, simulated or real, by the package's own pretexts and losses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from benchmarks.experiments.arms import Arm, Pretraining, digest
from benchmarks.experiments.cases import L_MAX, SHELL, Case, Scale, boxed, encoded, stacked
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.fitting import train
from benchmarks.experiments.methods import METHODS, build, output
from benchmarks.experiments.runner import Runner
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.io.writing import replacing
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


def spec_of(method: str) -> ModelSpec:
    """What the package's pretexts must know of a method's channels."""
    architecture = ARCHITECTURES[METHODS[method].network]
    return ModelSpec.of(
        {
            "architecture": architecture, "shells": [SHELL], "l_max": 6 if architecture == "any" else L_MAX,
            "order_scale": None, "insufficient_directions": "zero", "shell_tolerance": 0.35,
        }
    )  # fmt: skip


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


def _pretrain(runner: Runner, arm: Arm, step: Pretraining) -> tuple[nn.Module, list[tuple[int, float, float]]]:
    method, spec = METHODS[arm.method], spec_of(arm.method)
    scans = _scans(runner, step.cohort)
    loss = pretext_loss(step.pretext, spec)  # type: ignore[arg-type]
    prepare = PretrainBatch(step.pretext, spec, step.preset)  # type: ignore[arg-type]
    clean = [_channels(scan, method.takes) for scan in scans]
    scale, torch_seed = Scale.of(clean), arm.seed
    torch.manual_seed(torch_seed)
    network = build(method.network, clean[0].irreps, spec.pretext_irreps, arm.size, **arm.recipe.variant)
    network = network.to(runner.device)
    units = Scale.of([_channels(scan, "harmonics") for scan in scans]) if method.takes == "harmonics" else None
    draws = np.random.RandomState(arm.seed)

    def drawn(scan: Scan, seed: int) -> tuple[Case, Any]:
        made, target = prepare(_batch(scan, seed), torch.device(runner.device))
        image = torch.as_tensor(made)[0] * scan.brain.to(runner.device)
        case = scale(Case(image, clean[0].irreps, image[:1], scan.brain.to(runner.device)))
        return stacked([case], method.multiple)[0], target

    fixed = [drawn(scan, number) for number, scan in enumerate(scans[:VALIDATORS])]
    targets: list[Any] = []

    def batches() -> list[Case]:
        targets[:] = []
        chosen = draws.randint(VALIDATORS, len(scans), step.schedule.batch)
        pairs = [drawn(scans[i], int(draws.randint(2**31))) for i in chosen]
        targets.extend(target for _, target in pairs)
        return [case for case, _ in pairs]

    def error(case: Case, target: Any) -> Tensor:
        pred = output(network, case.image[None], case.table)
        inner = [slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(pred.shape[2:], _shape(target), strict=True)]
        pred = pred[:, :, *inner]
        if units is not None:  # back from standardised channels
            pred = pred / units.factor.to(pred).view(1, -1, 1, 1, 1) + units.mean.to(pred).view(1, -1, 1, 1, 1)
        found: Tensor = loss(pred, target)
        return found

    def mean_error(_: Tensor, batch: Sequence[Case]) -> Tensor:
        return torch.stack([error(c, t) for c, t in zip(batch, targets, strict=True)]).mean()

    def validate() -> float:
        return -float(torch.stack([error(case, target) for case, target in fixed]).mean())

    curve = train(network, batches, mean_error, validate, step.schedule, step.rate)
    return network, curve.points


def _shape(target: Any) -> tuple[int, ...]:
    image = target["image"] if isinstance(target, dict) else target
    return tuple(image.shape[2:])


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


def _scans(runner: Runner, cohort: Cohort | str) -> list[Scan]:
    """The heads of a cohort, or the real scans."""
    if isinstance(cohort, Cohort):
        subjects = [runner.subject(cohort, n) for n in range(cohort.subjects)]
        return [_boxed(s.image, s.table.bvals, s.table.bvecs, s.brain_mask > 0) for s in subjects]
    if runner.real is None:
        raise ValueError(f"pretraining on {cohort} scans needs --real, the folder of a BIDS data set")
    return _real_scans(runner.real, runner.work)


def _boxed(image: MetaTensor, bvals: Tensor, bvecs: Tensor, brain: Tensor) -> Scan:
    """Cut to the brain's box; the affine, which only gives the axes here, keeps its directions and spacing."""
    raw = image.as_tensor() * brain
    case = boxed(Case(raw, f"{len(raw)}x0e", raw[:1], brain))
    return Scan(MetaTensor(case.image, affine=image.affine, meta=image.meta), bvals, bvecs, case.mask)
