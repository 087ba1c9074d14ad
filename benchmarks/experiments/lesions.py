"""Lesion segmentation against training-set size, orientation of the test heads, parameters, and pq kernels.

After Müller et al. 2021 (arXiv:2102.06942), with an arm the paper lacks: the plain network trained on rotated heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.experiments.arms import Arm, Budget
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.run import Runner
from benchmarks.experiments.sizes import WHOLE, Size
from benchmarks.experiments.voxelwise import VOXELWISE, voxelwise_line

__all__ = ["KERNELS", "METHODS", "run"]

NAME = "lesions"
CONFIGS = Path(__file__).parents[2] / "configs"
ROTATED = "plain, rotated"
METHODS = ("equivariant", "pq", "plain", ROTATED)
ROTATION = {
    "_target_": "dmri_monai.transforms.RandRotateMMd", "keys": ["image", "label", "mask"], "prob": 1.0,
    "mode": ["bilinear", "nearest", "nearest"], "padding_mode": "zeros",
}  # fmt: skip
COSINE = {"_target_": "dmri_monai.equivariant.Cosine"}


def _kernel(name: str, **options: Any) -> dict[str, Any]:
    return {"_target_": f"dmri_monai.equivariant.{name}", "p_radial": COSINE, **options}


def _with(other: str) -> dict[str, Any]:
    own = {"_target_": f"dmri_monai.equivariant.{other}"} | (
        {"p_radial": COSINE} if other == "PSpace" else {}
    )
    return {"_target_": "dmri_monai.equivariant.Sum", "kernels": [_kernel("PQDiff"), own]}


KERNELS = {
    "pq-diff+p": _with("PSpace"),
    "pq-diff+q": _with("QSpace"),
    "TP-vec": _kernel("PQTensorProduct", rule="TP-vec"),
    "TP±1": _kernel("PQTensorProduct", rule="TP±1"),
}


def run(runner: Runner, size: Size) -> None:
    """All arms: the yardstick, training-set size, equal training time, parameters, kernels."""
    voxelwise_arms(runner, size)
    rates = tuned_rates(runner, size)
    for part in (data_arms, time_arms, width_arms, kernel_arms):
        for arms in part(size, rates):
            runner.run(arms)


def cohorts(size: Size) -> tuple[Cohort, tuple[Cohort, Cohort]]:
    """Of training, and of tests in the training orientation and in random ones: the same heads."""
    tests = size.cohort("upright", 202), size.cohort("turned", 202, turned=True)
    return size.cohort("lesions", 201, test=False), tests


def method_settings(size: Size, method: str, **more: Any) -> dict[str, Any]:
    """Keys of train.json of a method: a balanced loss inside the brain, as published; half of the crops on lesions."""
    loss = {"_target_": "dmri_monai.losses.LesionBCELoss", "pos_weight": None}
    network = "plain" if method == ROTATED else method
    crops = json.loads((CONFIGS / "lesion_crops.json").read_text(encoding="utf-8"))["augment"]
    augment = [ROTATION, *crops] if method == ROTATED else crops  # uniform over all rotations
    return size.settings(network, "lesion", loss=loss, augment=augment, **more)


def _arm(size: Size, labels: Mapping[str, Any], settings: dict[str, Any], budget: Budget, **more: Any) -> Arm:
    train, tests = cohorts(size)
    return Arm(NAME, labels, 0, train, settings, budget, tests, **more)


def tuned_rates(runner: Runner, size: Size) -> dict[str, float]:
    """The learning rate of every method, by validation on all subjects; wider and narrower networks take it over."""
    found = {}
    for method in METHODS:
        labels = {"study": "data", "method": method}
        trial = _arm(size, labels, method_settings(size, method), Budget(size.steps))
        found[method] = runner.tuned(trial, size.rates).settings["learning_rate"]
    return found


def voxelwise_arms(runner: Runner, size: Size) -> None:
    """The yardstick without a network at every training-set size."""
    for fraction in size.fractions:
        n = max(1, round(fraction * size.learners))
        labels = {"study": "data", "method": VOXELWISE, "share": fraction, "subjects": n}
        for seed in range(size.seeds):
            voxelwise_line(runner, NAME, labels, seed, *cohorts(size), n)


def data_arms(size: Size, rates: Mapping[str, float]) -> Iterator[list[Arm]]:
    """Every method at every training-set size, for the same number of steps."""
    for fraction in size.fractions:
        n = max(1, round(fraction * size.learners))
        for method in METHODS:
            labels = {"study": "data", "method": method, "share": fraction, "subjects": n}
            own = method_settings(size, method, learning_rate=rates[method])
            yield _arm(size, labels, own, Budget(size.steps), train_subjects=n).with_seeds(size.seeds)


def time_arms(size: Size, rates: Mapping[str, float]) -> Iterator[list[Arm]]:
    """All methods on all subjects for the same time of training.

    The plain network also wider, and on whole scans.
    """
    wide = size.widths[-1][1] if size.widths[-1][0] == "plain" else size.widths[-2][1]
    settings = {method: method_settings(size, method, learning_rate=rates[method]) for method in METHODS}
    settings["plain, wide"] = {**settings["plain"], **wide}
    settings[WHOLE] = method_settings(size, WHOLE, learning_rate=rates["plain"])
    for method, own in settings.items():
        arm = _arm(size, {"study": "time", "method": method}, own, Budget(size.seconds, "seconds"))
        yield arm.with_seeds(size.seeds)


def width_arms(size: Size, rates: Mapping[str, float]) -> Iterator[list[Arm]]:
    """Narrower and wider networks on all subjects, beside those of the first study."""
    for number, (method, network) in enumerate(size.widths):
        own = {**method_settings(size, method, learning_rate=rates[method]), **network}
        labels = {"study": "parameters", "method": method, "width": number}
        yield _arm(size, labels, own, Budget(size.steps)).with_seeds(size.seeds)


def kernel_arms(size: Size, rates: Mapping[str, float]) -> Iterator[list[Arm]]:
    """The four kernels of two pq layers, q-space reduced after them or step by step; all of them seed by seed."""
    arms = []
    for (name, kernel), reduction in product(KERNELS.items(), ("late", "gradual")):
        options = {**size.pq_layers, "kernel": kernel}
        if reduction == "gradual":
            q_out = [size.q_out, max(1, size.q_out // 3)]
            options["options"] = {"_target_": "dmri_monai.networks.PQOptions", "q_out": q_out}
        own = {**method_settings(size, "pq", learning_rate=rates["pq"]), "size": "small"}
        labels = {"study": "kernels", "method": name, "reduction": reduction}
        arms.append(_arm(size, labels, {**own, "network_options": options}, Budget(size.steps)))
    for seed in range(size.seeds):
        yield [replace(arm, seed=seed) for arm in arms]
