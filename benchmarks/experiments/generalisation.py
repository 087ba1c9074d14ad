"""Trained on one protocol, tested on others: directions, b-values, shells, SNR, voxel size, artifacts.

The test heads are the same in all of them.
"""

from __future__ import annotations

from typing import Any

from benchmarks.experiments.arms import Arm, Budget
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.run import Runner
from benchmarks.experiments.sizes import WHOLE, Size

__all__ = ["NAME", "protocols", "run"]

NAME = "generalisation"
METHODS = ("plain", WHOLE, "equivariant", "pq")
TRAINED = ((1000.0, 64),)
# channels of orders that few directions cannot give are zero; b-values up to 35 % off the trained shell count for it
TOLERANT = {"too_few": "zero", "shell_tolerance": 0.35}
HIGHEST_B = 3000.0  # s/mm2, of the tests


def run(runner: Runner, size: Size) -> None:
    """Tissue segmentation by every method and seed."""
    for method in METHODS:
        arm = Arm(
            NAME,
            {"method": method, "task": "tissue"},
            0,
            size.cohort("training", 401, test=False, shells=TRAINED),
            settings(size, method),
            Budget(size.steps),
            protocols(size),
        )
        runner.run(arm.with_seeds(size.seeds))


def settings(size: Size, method: str) -> dict[str, Any]:
    """Keys of train.json of a method; the length of q must be known for all shells of the tests."""
    own = size.settings(method, "tissue", wide=True, **TOLERANT)
    if method == "pq":
        own["network_options"] = {**own.get("network_options", {}), "b_max": HIGHEST_B}
    return own


def protocols(size: Size) -> tuple[Cohort, ...]:
    """The protocol of the training, then what differs from it in one point; voxels by a factor of 1.25."""
    changes: dict[str, dict[str, Any]] = {
        "as trained": {},
        "32 directions": {"shells": ((1000.0, 32),)},
        "20 directions": {"shells": ((1000.0, 20),)},
        "12 directions": {"shells": ((1000.0, 12),)},
        "b = 750": {"shells": ((750.0, 64),)},
        "b = 1300": {"shells": ((1300.0, 64),)},
        "3 shells": {"shells": ((1000.0, 64), (2000.0, 64), (3000.0, 64))},
        "SNR 8": {"snr": (8.0, 8.0)},
        "SNR 40": {"snr": (40.0, 40.0)},
        "smaller voxels": {"spacing_mm": 0.8 * size.spacing_mm, "size": round(1.25 * size.voxels)},
        "larger voxels": {"spacing_mm": 1.25 * size.spacing_mm, "size": round(0.8 * size.voxels)},
        **{f"artifacts {p}": {"artifacts": p} for p in ("light", "normal", "strong", "all")},
        "turned heads": {"turned": True},
    }
    return tuple(size.cohort(name, 402, **{"shells": TRAINED, **change}) for name, change in changes.items())
