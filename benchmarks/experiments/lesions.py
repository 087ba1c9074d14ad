"""Lesion segmentation against training-set size, orientation of the test heads, parameters, and pq kernels.

After Müller et al. 2021 (arXiv:2102.06942), with the arm the paper lacks: the plain network trained on rotated heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.experiments.arms import Arm, Budget
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.run import BUNDLE, Runner
from benchmarks.experiments.sizes import Size

__all__ = ["KERNELS", "METHODS", "run"]

NAME = "lesions"
ROTATED = "plain, rotated"
METHODS = ("equivariant", "pq", "plain", ROTATED)
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
    """All arms: training-set size, equal training time, parameters, kernels."""
    for part in (data_arms, time_arms, width_arms, kernel_arms):
        for arms in part(runner, size):
            runner.run(arms)


def cohorts(size: Size) -> tuple[Cohort, tuple[Cohort, Cohort]]:
    """Of training, and of tests in the training orientation and in random ones: the same heads."""
    tests = size.cohort("upright", 202), size.cohort("turned", 202, turned=True)
    return size.cohort("lesions", 201, test=False), tests


def method_settings(size: Size, method: str, **more: Any) -> dict[str, Any]:
    """Keys of train.json of a method: a balanced loss inside the brain, as published."""
    loss = {"_target_": "dmri_monai.losses.LesionBCELoss", "pos_weight": None}
    network = "plain" if method == ROTATED else method
    rotation: dict[str, Any] = {"augment": rotated_augmentation()} if method == ROTATED else {}
    return size.settings(network, "lesion", loss=loss, **rotation, **more)


def rotated_augmentation() -> list[dict[str, Any]]:
    """The augmentation of train.json after a random rotation, uniform over all of them."""
    augment: list[dict[str, Any]] = json.loads((BUNDLE / "configs" / "train.json").read_text())["augment"]
    keys = ["image", "label", "mask"]
    turn = {
        "_target_": "dmri_monai.transforms.RandRotateMMd", "keys": keys, "prob": 1.0,
        "mode": ["bilinear", "nearest", "nearest"], "padding_mode": "zeros", "allow_missing_keys": True,
    }  # fmt: skip
    return [turn, *augment]


def _arm(size: Size, labels: Mapping[str, Any], settings: dict[str, Any], budget: Budget, **more: Any) -> Arm:
    train, tests = cohorts(size)
    return Arm(NAME, labels, 0, train, settings, budget, tests, **more)


def data_arms(runner: Runner, size: Size) -> Iterator[list[Arm]]:
    """Every method at every training-set size, for the same number of steps; smallest sets first."""
    budget = Budget(size.steps)
    tuned = {}
    for method in METHODS:
        labels = {"study": "data", "method": method}
        tuned[method] = runner.tuned(_arm(size, labels, method_settings(size, method), budget), size.rates)
    for fraction in size.fractions:
        n = max(1, round(fraction * size.learners))
        for arm in tuned.values():
            yield arm.with_labels(share=fraction, subjects=n).with_subjects(n).with_seeds(size.seeds)


def time_arms(runner: Runner, size: Size) -> Iterator[list[Arm]]:
    """All methods, and a wider plain network, on all subjects for the same time of training."""
    wide = size.widths[-1][1] if size.widths[-1][0] == "plain" else size.widths[-2][1]
    settings = {method: method_settings(size, method) for method in METHODS}
    settings["plain, wide"] = {**method_settings(size, "plain"), **wide}
    for method, own in settings.items():
        arm = _arm(size, {"study": "time", "method": method}, own, Budget(size.seconds, "seconds"))
        yield arm.with_seeds(size.seeds)


def width_arms(runner: Runner, size: Size) -> Iterator[list[Arm]]:
    """Narrower and wider networks on all subjects; those of the first study stand between them."""
    for number, (method, network) in enumerate(size.widths):
        own = {**method_settings(size, method), **network}
        labels = {"study": "parameters", "method": method, "width": number}
        yield _arm(size, labels, own, Budget(size.steps)).with_seeds(size.seeds)


def kernel_arms(runner: Runner, size: Size) -> Iterator[list[Arm]]:
    """The four kernels of two pq layers, q-space reduced after them or step by step."""
    for name, kernel in KERNELS.items():
        for reduction in ("late", "gradual"):
            options = {**size.pq_layers, "kernel": kernel}
            if reduction == "gradual":
                q_out = [size.q_out, max(1, size.q_out // 3)]
                options["options"] = {"_target_": "dmri_monai.networks.PQOptions", "q_out": q_out}
            own = {**method_settings(size, "pq"), "size": "small", "network_options": options}
            labels = {"study": "kernels", "method": name, "reduction": reduction}
            yield _arm(size, labels, own, Budget(size.steps)).with_seeds(size.seeds)
