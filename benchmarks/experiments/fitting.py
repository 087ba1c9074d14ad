"""Train one network on cases: one-cycle Adam, validated on the way, stopped where nothing is gained any more."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.experiments.arms import Arm, Schedule
from benchmarks.experiments.cases import Case, mirrored, stacked, turned
from benchmarks.experiments.methods import METHODS, output
from benchmarks.experiments.objectives import OBJECTIVES
from dmri_monai.transforms.random_rotation import random_rotation

__all__ = ["Curve", "NotFinite", "fit", "predict", "train"]

CLIP = 1.0  # norm of the gradient
MOST_SKIPPED = 0.1  # share of the steps
ROTATED = 0.8  # share of the heads that are turned, where a method learns from turned ones


class NotFinite(RuntimeError):
    """Too many steps of a training had a gradient that is not finite."""


@dataclass
class Curve:
    """points: step, loss since the last one, score of every validation.  best: score, and its step.

    seconds: of the CPU, for training alone.  skipped: steps whose gradient was not finite.
    """

    points: list[tuple[int, float, float]]
    best: float = float("-inf")
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0


def fit(network: nn.Module, learners: Sequence[Case], validators: Sequence[Case], arm: Arm) -> Curve:
    """Train `network` in place on labels, as `arm` says, and leave it with the weights that validated best."""
    method, objective = METHODS[arm.method], OBJECTIVES[arm.task]

    def loss(batch: Sequence[Case]) -> Tensor:
        images = torch.stack([case.image for case in batch])
        pred = output(network, images, batch[0].table, arm.precision)
        pairs = [(p[:, case.mask], case.label[:, case.mask]) for p, case in zip(pred, batch, strict=True)]
        return torch.stack([objective.loss(p, label, arm.recipe.weight) for p, label in pairs]).mean()

    def validate() -> float:
        values = [
            objective.value(objective.scores(objective.decide(pred), case.label[:, case.mask]))
            for case, pred in zip(validators, predict(network, validators, arm), strict=True)
        ]
        return float(np.nanmean(values))

    draws = np.random.RandomState(arm.seed)
    batches = _drawn(learners, arm.schedule.batch, method.multiple, method.rotated, draws)
    return train(network, batches, loss, validate, arm.schedule, arm.recipe.rate)


def train(
    network: nn.Module,
    batches: Callable[[], list[Any]],
    loss: Callable[[list[Any]], Tensor],
    validate: Callable[[], float],
    schedule: Schedule,
    rate: float,
) -> Curve:
    """The loop itself; larger values of `validate` are better."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=schedule.steps + 1, pct_start=0.3
    )
    curve, losses, best = Curve([]), [], copy.deepcopy(network.state_dict())
    stale = 0
    for step in range(1, schedule.steps + 1):
        start = time.process_time()
        network.train()
        value = loss(batches())
        optimizer.zero_grad()
        value.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        if bool(norm.isfinite()):  # convolutions in bfloat16 on few voxels seldom give a gradient that is not
            optimizer.step()
        else:
            curve.skipped += 1
        cycle.step()
        losses.append(float(value.detach()))
        curve.seconds += time.process_time() - start
        if step % schedule.every and step != schedule.steps:
            continue
        network.eval()
        with torch.inference_mode():
            score = validate()
        curve.points.append((step, round(float(np.mean(losses)), 5), round(score, 5)))
        losses, stale = [], stale + 1
        if score > curve.best:
            curve.best, curve.step, stale, best = score, step, 0, copy.deepcopy(network.state_dict())
        if stale >= schedule.patience:
            break
    if curve.skipped > MOST_SKIPPED * step:
        raise NotFinite(f"{curve.skipped} of {step} steps had a gradient that is not finite")
    network.load_state_dict(best)
    network.eval()
    return curve


def predict(network: nn.Module, cases: Sequence[Case], arm: Arm) -> list[Tensor]:
    """(K, V) outputs at the brain's voxels of every case."""
    multiple = METHODS[arm.method].multiple
    network.eval()
    found = []
    with torch.inference_mode():
        for case in cases:
            (whole,) = stacked([case], multiple)
            found.append(output(network, whole.image[None], whole.table, arm.precision)[0][:, whole.mask])
    return found


def _drawn(
    learners: Sequence[Case], batch: int, multiple: int, rotated: bool, draws: np.random.RandomState
) -> Callable[[], list[Case]]:
    """Draws batches: every head once before any twice, mirrored every other time, turned where asked."""
    waiting: list[int] = []

    def one() -> Case:
        if not waiting:
            waiting.extend(draws.permutation(len(learners)).tolist())
        case = learners[waiting.pop()]
        if rotated and draws.uniform() < ROTATED:
            case = turned(case, random_rotation(draws))
        return mirrored(case) if draws.uniform() < 0.5 else case

    return lambda: stacked([one() for _ in range(batch)], multiple)
