"""Pretraining on an HCP-like cohort, fine-tuned on few labelled subjects of another, clinical protocol.

After Weninger et al. 2022 (BVM): other heads, SNR, voxel size and gradient table than those of the pretraining.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from benchmarks.experiments.arms import Arm, Budget, Pretraining
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.run import Runner
from benchmarks.experiments.sizes import WHOLE, Size

__all__ = ["NAME", "PRETEXTS", "TASKS", "run"]

NAME = "pretraining"
TASKS = ("tissue", "crossings", "orientation")
PAPERS = ("none", "autoencoder", "artifacts")
PRETEXTS = (*PAPERS, "masked")
METHODS = ("plain", "equivariant", WHOLE)
FEW = 2  # labelled subjects, up to which the further arms run: whole scans, and presets but the first


def run(runner: Runner, size: Size) -> None:
    """All arms, those of the paper's question first."""
    for arms in _arms(size):
        runner.run(arms)


def hcp_cohort(size: Size) -> Cohort:
    """Unlabelled: smaller voxels, more directions, high SNR."""
    spacing, voxels = 0.8 * size.spacing_mm, round(size.voxels / 0.8)
    return size.cohort(
        "hcp-like", 301, test=False, size=voxels, spacing_mm=spacing,
        shells=tuple((b, size.hcp_directions) for b in size.hcp_shells),
        n_b0=6, snr=(20.0, 40.0),
    )  # fmt: skip


def clinical_cohorts(size: Size) -> tuple[Cohort, Cohort]:
    """To fine-tune on, and to test: large voxels, few directions, low SNR."""
    protocol: dict[str, Any] = {
        "shells": ((1000.0, clinical_directions(size)),),
        "snr": (10.0, 18.0),
        "n_b0": 2,
    }
    return size.cohort("clinical", 302, test=False, **protocol), size.cohort("test", 303, **protocol)


def shells(size: Size) -> dict[str, Any]:
    """Keys of train.json for a network that knows all shells of the pretraining and finds one in the clinical scans."""
    if size.hcp_shells == (1000.0,):
        return {}
    return {"shells": list(size.hcp_shells), "missing": "zero"}


def clinical_directions(size: Size) -> int:
    """At most 32."""
    return min(32, size.directions)


def pretraining_of(size: Size, pretext: str, preset: str) -> Pretraining | None:
    """The step before; None for the control, which starts from its random weights."""
    if pretext == "none":
        return None
    settings: dict[str, Any] = {"pretext": pretext}
    if pretext == "artifacts":
        settings["corruption"] = preset
    if len(size.hcp_shells) > 1:
        settings["drop_shells"] = 0.5
    return Pretraining(hcp_cohort(size), settings, Budget(size.pretrain_steps))


def _arms(size: Size) -> Iterator[list[Arm]]:
    for preset, method, labelled, task in product(size.presets, METHODS, size.labelled, TASKS):
        for pretext in _pretexts(preset == size.presets[0], labelled <= FEW, method == WHOLE):
            yield _seeds(size, pretext, preset, method, task, labelled)


def _pretexts(first: bool, few: bool, whole: bool) -> tuple[str, ...]:
    """All with the first preset, artifacts alone with another; on whole scans, which take long, those of the paper."""
    if whole:
        return PAPERS if first and few else ()
    return PRETEXTS if first else ("artifacts",) if few else ()


def _seeds(size: Size, pretext: str, preset: str, method: str, task: str, labelled: int) -> list[Arm]:
    train, test = clinical_cohorts(size)
    labels = {"pretext": pretext, "architecture": method, "task": task, "labelled": labelled}
    if pretext == "artifacts":
        labels["preset"] = preset
    arm = Arm(
        NAME,
        labels,
        0,
        train,
        size.settings(method, task, wide=True, **shells(size)),
        Budget(size.tune_steps),
        (test,),
        train_subjects=labelled,
        pretraining=pretraining_of(size, pretext, preset),
    )
    return arm.with_seeds(size.seeds)
