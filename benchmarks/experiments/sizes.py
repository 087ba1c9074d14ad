"""How large the experiments are: "small" for minutes and "cpu" for hours on one core, "full" for one GPU machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.experiments.arms import Schedule
from benchmarks.experiments.cohorts import Cohort

__all__ = ["SIZES", "Size"]

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Size:
    """Numbers of the experiments.

    voxels^3 of spacing_mm; directions at b = 1000 s/mm²; learners, validators, tests: heads.
    schedule: of a training from scratch; pretraining, tuning: of a pretraining and of what follows it.
    rates: learning rates every search begins with; one alone is taken without a search.  thorough: searches try class
    weights and norms, too.
    fractions: of the learners; labelled: heads of fine-tuning; presets: of pretraining's artifacts.
    hcp_shells, hcp_directions: of the heads of pretraining: b-values, and directions of each.
    precision: of the networks' arithmetic.  methods: of the experiments, where they are not named there.
    networks: network -> arguments of its class.
    widths: (method, arguments) of the study of parameters, beside those of `networks`.
    """

    name: str
    anatomy: str
    voxels: int
    spacing_mm: float
    directions: int
    learners: int
    validators: int
    tests: int
    seeds: int
    schedule: Schedule
    pretraining: Schedule
    tuning: Schedule
    rates: tuple[float, ...]
    thorough: bool
    fractions: tuple[float, ...]
    labelled: tuple[int, ...]
    presets: tuple[str, ...]
    hcp_directions: int
    hcp_shells: tuple[float, ...]
    methods: tuple[str, ...]
    networks: Mapping[str, Settings]
    widths: tuple[tuple[str, Settings], ...]
    precision: str = "bfloat16"

    def cohort(self, name: str, seed: int, *, test: bool = True, **change: Any) -> Cohort:
        """A cohort of this size; `change`: fields of :class:`Cohort` that differ from the training protocol."""
        own: dict[str, Any] = {
            "subjects": self.tests if test else self.learners + self.validators,
            "size": self.voxels,
            "spacing_mm": self.spacing_mm,
            "shells": ((1000.0, self.directions),),
            "anatomy": self.anatomy,
        }
        return Cohort(name=name, seed=seed, **{**own, **change})


def _plain(filters: int) -> dict[str, Any]:
    return {"filters": filters}


CPU = Size(
    name="cpu",
    anatomy="procedural",
    voxels=32,
    spacing_mm=4.2,
    directions=32,
    learners=40,
    validators=6,
    tests=10,
    seeds=2,
    schedule=Schedule(600, 30, 7),
    pretraining=Schedule(400, 40, 5),
    tuning=Schedule(200, 20, 6),
    rates=(0.001, 0.003, 0.01, 0.03),
    thorough=False,
    fractions=(1.0, 0.25, 0.1, 0.5, 0.05),
    labelled=(2, 1, 5, 20),
    presets=("normal", "light", "strong", "all"),
    hcp_directions=30,
    hcp_shells=(1000.0,),
    methods=("plain", "equivariant", "plain, rotated", "DynUNet", "DynUNet, rotated"),
    networks={
        "plain": _plain(4),
        "SegResNet": _plain(4),
        "DynUNet": _plain(4),
        "equivariant": {"size": ["5x0e+1x2e", "10x0e+2x2e", "20x0e+4x2e"]},
        "any": {"size": "tiny", "channels": 6, "scalars": 16, "hidden": 12, "blocks": 2},
        "pq": {"pq": [[3, 2]], "p": [[10, 3], [6, 2]], "kernel_size": 3},
    },
    widths=(
        ("plain", _plain(2)),
        ("plain", _plain(8)),
        ("equivariant", {"size": ["8x0e+2x2e", "16x0e+4x2e", "48x0e+4x2e"]}),
        ("equivariant", {"size": "tiny"}),
    ),
)

# one seed of everything: shows that every comparison runs, not how it ends
SMALL = replace(
    CPU,
    name="small",
    voxels=16,
    spacing_mm=8.0,
    learners=4,
    validators=2,
    tests=2,
    seeds=1,
    schedule=Schedule(6, 3, 2),
    pretraining=Schedule(4, 2, 2),
    tuning=Schedule(4, 2, 2),
    rates=(0.01,),
    fractions=(0.5,),
    labelled=(2,),
    presets=("normal",),
    methods=("equivariant", "plain", "DynUNet", "plain, rotated"),
    widths=CPU.widths[:1],
    precision="float32",  # bfloat16 on so few voxels gives gradients that are not finite
)

FULL = Size(
    name="full",
    anatomy="mni152",
    voxels=88,
    spacing_mm=2.5,
    directions=64,
    learners=40,
    validators=10,
    tests=20,
    seeds=5,
    schedule=Schedule(6000, 200, 10, batch=2),
    pretraining=Schedule(10000, 500, 6),
    tuning=Schedule(2000, 100, 8),
    rates=(0.0003, 0.001, 0.003, 0.01),
    thorough=True,
    fractions=(0.05, 0.1, 0.25, 0.5, 1.0),
    labelled=(2, 1, 5, 20),
    presets=("normal", "light", "strong", "all"),
    hcp_directions=90,
    hcp_shells=(1000.0, 2000.0, 3000.0),
    methods=(
        "plain", "plain, rotated", "SegResNet", "SegResNet, rotated", "DynUNet",
        "DynUNet, rotated", "equivariant", "any", "pq",
    ),
    networks={
        "plain": _plain(16),
        "SegResNet": _plain(16),
        "DynUNet": _plain(16),
        "equivariant": {"size": "small"},
        "any": {"size": "small"},
        "pq": {},
    },
    widths=(
        ("plain", _plain(4)),
        ("plain", _plain(32)),
        ("DynUNet", _plain(32)),
        ("equivariant", {"size": "tiny"}),
        ("equivariant", {"size": "base"}),
    ),
)  # fmt: skip

SIZES = {size.name: size for size in (SMALL, CPU, FULL)}
