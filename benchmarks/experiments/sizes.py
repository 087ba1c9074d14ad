"""How large the experiments are: "small" for minutes and "cpu" for hours on two cores, "full" for one GPU machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.experiments.cohorts import Cohort

__all__ = ["CPU", "FULL", "SIZES", "SMALL", "WHOLE", "Size"]

Settings = Mapping[str, Any]
WHOLE = "plain, whole scans"  # the plain network without crops: its instance norm sees little in a small one


@dataclass(frozen=True)
class Size:
    """Numbers of an experiment.

    voxels^3 of spacing_mm; directions at b = 1000 s/mm2; subjects: of a training cohort, a fifth of which validates.
    steps, seconds: the two budgets of a training from scratch; pretrain_steps, tune_steps: of pretraining and of
    what follows it.  rates: learning rates every method tries; rate: of the arms that try none.
    hcp_shells, hcp_directions: of the cohort of pretraining: b-values, and directions of each.
    fractions: of the subjects that learn; labelled: subjects of fine-tuning; presets: of pretraining's artifacts.
    networks: method -> keys of train.json, all of about the same number of parameters but "pq", whose published
    shape has fewer.  wider: those of the experiments that are not about the number of parameters.
    widths: (method, keys) of the study of parameters.  pq_layers, q_out: of the study of kernels.
    """

    name: str
    anatomy: str
    voxels: int
    spacing_mm: float
    directions: int
    subjects: int
    test_subjects: int
    seeds: int
    steps: int
    seconds: float
    pretrain_steps: int
    tune_steps: int
    hcp_directions: int
    hcp_shells: tuple[float, ...]
    crop: int
    rates: tuple[float, ...]
    rate: float
    fractions: tuple[float, ...]
    labelled: tuple[int, ...]
    presets: tuple[str, ...]
    networks: Mapping[str, Settings]
    wider: Mapping[str, Settings]
    widths: tuple[tuple[str, Settings], ...]
    pq_layers: Settings
    q_out: int

    @property
    def learners(self) -> int:
        """Subjects of a training cohort that learn, not validate."""
        return self.subjects - round(0.2 * self.subjects)

    def cohort(self, name: str, seed: int, *, test: bool = True, **change: Any) -> Cohort:
        """A cohort of this size; `change`: fields of :class:`Cohort` that differ from the training protocol."""
        own: dict[str, Any] = {
            "subjects": self.test_subjects if test else self.subjects,
            "size": self.voxels,
            "spacing_mm": self.spacing_mm,
            "shells": ((1000.0, self.directions),),
            "anatomy": self.anatomy,
        }
        return Cohort(name=name, seed=seed, **{**own, **change})

    def settings(self, method: str, task: str, *, wide: bool = False, **more: Any) -> dict[str, Any]:
        """Keys of train.json of a method on a task; wide: with the wider network, where there is one."""
        networks = {**self.networks, **self.wider} if wide else self.networks
        network = networks["plain" if method == WHOLE else method]
        own = {
            "task": task,
            "spacing_mm": [self.spacing_mm] * 3,
            "crop_size": [self.voxels if method == WHOLE else self.crop] * 3,
            "masked": True,
        }
        return {**own, "learning_rate": self.rate, **network, **more}


def _equivariant(size: Any) -> dict[str, Any]:
    return {"architecture": "equivariant", "size": size}


def _plain(filters: int) -> dict[str, Any]:
    return {"architecture": "plain", "network_options": {"filters": filters}}


CPU = Size(
    name="cpu",
    anatomy="procedural",
    voxels=32,
    spacing_mm=4.0,
    directions=16,
    subjects=50,
    test_subjects=10,
    seeds=3,
    steps=400,
    seconds=50.0,
    pretrain_steps=500,
    tune_steps=200,
    hcp_directions=30,
    hcp_shells=(1000.0,),
    crop=16,
    rates=(0.003, 0.01),
    rate=0.005,
    fractions=(0.05, 0.1, 0.25, 0.5, 1.0),
    labelled=(2, 20),
    presets=("all", "light", "normal", "strong"),
    networks={
        "equivariant": _equivariant(["8x0e+2x2e", "16x0e+4x2e", "48x0e+4x2e"]),
        "plain": _plain(2),
        "pq": {
            "architecture": "pq",
            "network_options": {"pq": [[3, 2]], "p": [[10, 3], [6, 2]], "kernel_size": 3},
        },
    },
    wider={"plain": _plain(4)},
    widths=(
        ("equivariant", _equivariant(["5x0e+1x2e", "10x0e+2x2e", "20x0e+4x2e"])),
        ("equivariant", _equivariant("tiny")),
        ("plain", _plain(1)),
        ("plain", _plain(4)),
        ("plain", _plain(8)),
    ),
    pq_layers={"pq": [[3, 2], [3, 2]], "p": [[6, 2]], "kernel_size": 3},
    q_out=6,
)

# one seed of everything: shows that every comparison runs, not how it ends
SMALL = replace(
    CPU,
    name="small",
    voxels=16,
    spacing_mm=8.0,
    subjects=5,
    test_subjects=2,
    seeds=1,
    steps=8,
    seconds=2.0,
    pretrain_steps=8,
    tune_steps=8,
    rates=(0.01,),
    fractions=(0.5,),
    labelled=(2,),
    presets=("all",),
    widths=CPU.widths[-1:],
)

FULL = Size(
    name="full",
    anatomy="mni152",
    voxels=88,
    spacing_mm=2.5,
    directions=64,
    subjects=50,
    test_subjects=20,
    seeds=5,
    steps=6000,
    seconds=1800.0,
    pretrain_steps=10000,
    tune_steps=2000,
    hcp_directions=90,
    hcp_shells=(1000.0, 2000.0, 3000.0),
    crop=48,
    rates=(0.001, 0.003, 0.01),
    rate=0.003,
    fractions=(0.05, 0.1, 0.25, 0.5, 1.0),
    labelled=(1, 2, 5, 20),
    presets=("all", "light", "normal", "strong"),
    networks={
        "equivariant": _equivariant("small"),
        "plain": _plain(6),
        "pq": {"architecture": "pq", "size": "small"},
    },
    wider={},
    widths=(
        ("equivariant", _equivariant("tiny")),
        ("equivariant", _equivariant("base")),
        ("plain", _plain(2)),
        ("plain", _plain(9)),
        ("plain", _plain(16)),
        ("pq", {"architecture": "pq", "size": "base"}),
    ),
    pq_layers={"pq": [[7, 4], [7, 4]], "p": [[20, 5], [10, 3], [5, 2]], "kernel_size": 5},
    q_out=16,
)

SIZES = {size.name: size for size in (SMALL, CPU, FULL)}
