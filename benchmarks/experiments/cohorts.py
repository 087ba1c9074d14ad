"""Cohorts of simulated subjects: heads upright as in the training data, or turned at random in the scanner."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.io.writing import replacing
from dmri_monai.phantom import Acquisition, Subject, make_subject, shell_table
from dmri_monai.transforms.random_rotation import random_rotation

__all__ = ["Cohort", "turned_subject", "upright_affine"]


@dataclass(frozen=True)
class Cohort:
    """`subjects` heads and how they are scanned; the heads depend on `seed` alone.

    shells: (b in s/mm2, directions) of each.  size: voxels along every axis; spacing_mm: of the cubic voxels.
    snr: range, of the white matter's b0.  turned: every head lies in the scanner in a random orientation, uniform
    over all rotations; else upright (the anatomy's own pose varies by some 8 degrees).  artifacts: a preset.
    """

    name: str
    subjects: int
    seed: int
    size: int
    spacing_mm: float
    shells: tuple[tuple[float, int], ...]
    n_b0: int = 2
    snr: tuple[float, float] = (15.0, 30.0)
    turned: bool = False
    artifacts: str | None = None
    anatomy: str = "procedural"

    def folder(self, root: str | Path) -> Path:
        """Where under `root` the cohort lies: its name and what it is made from."""
        made_from = json.dumps(asdict(self), sort_keys=True)
        return Path(root) / f"{self.name}-{hashlib.sha256(made_from.encode()).hexdigest()[:8]}"

    def stored(self, root: Path, number: int) -> Subject:
        """Subject `number` from its file under `root`, where it is written first if it is not there."""
        path = self.folder(root) / f"{number:03d}.pt"
        if path.is_file():
            kept: Subject = torch.load(path, weights_only=False)  # written by the next lines
            return kept
        path.parent.mkdir(parents=True, exist_ok=True)
        subject = replace(self.subject(number), clean=torch.empty(0), maps={})  # what no experiment reads
        with replacing(path) as (temporary,):
            torch.save(subject, temporary)
        return subject

    def subject(self, number: int) -> Subject:
        """Subject `number`, counted from 0."""
        rng = np.random.default_rng([self.seed, number, len(self.shells)])
        affine = upright_affine(self.size, self.spacing_mm)
        turn = random_rotation(np.random.RandomState([self.seed, number])) if self.turned else torch.eye(3)
        turn = turn.double()
        seen = affine.clone()
        seen[:3] = turn.T @ affine[:3]
        made = make_subject(
            (self.seed, number),
            anatomy=self.anatomy,  # type: ignore[arg-type]
            shape=(self.size,) * 3,
            affine=seen,
            scheme=shell_table(rng, dict(self.shells), self.n_b0),
            snr=self.snr,
            acquisition=Acquisition(artifacts=self.artifacts) if self.artifacts else None,
        )
        return turned_subject(made, turn, affine)


def upright_affine(size: int, spacing_mm: float) -> Tensor:
    """(4, 4) of a cube of `size`^3 voxels along the world's axes, centred at the world's origin."""
    affine = torch.diag(torch.tensor([spacing_mm, spacing_mm, spacing_mm, 1.0], dtype=torch.float64))
    affine[:3, 3] = -spacing_mm * (size - 1) / 2
    return affine


def turned_subject(subject: Subject, turn: Tensor, affine: Tensor) -> Subject:
    """`subject`, simulated on the grid `turn`^T `affine`, as a head turned by `turn` (3, 3) in the grid `affine`.

    Head, gradients and grid move as one body, so nothing is resampled: voxels stay, all world vectors turn.
    """
    moved = torch.einsum("ij,kjxyz->kixyz", turn.float(), subject.peaks_world.unflatten(0, (-1, 3)))
    table = subject.table
    return replace(
        subject,
        image=MetaTensor(subject.image.as_tensor(), affine=affine),
        affine=affine,
        table=GradientTable(table.bvals, table.bvecs @ turn.T, table.b0_threshold),
        peaks_world=moved.flatten(0, 1),
        parameters=subject.parameters | {"HeadTurn": turn.tolist()},
        maps={},  # some hold directions; no experiment reads them
    )
