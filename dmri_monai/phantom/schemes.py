"""Gradient tables of simulated scans: directions by electrostatic repulsion, presets, a random protocol."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from dipy.core.sphere import HemiSphere, disperse_charges

from dmri_monai.gradients import GradientTable

__all__ = ["Preset", "draw_scheme", "repelled_directions", "shell_table"]

Preset = Literal["random", "clinical-32", "single-64", "hcp-3shell"]
PRESETS: dict[str, tuple[dict[float, int], int]] = {  # {b-value: directions}, b0 volumes
    "clinical-32": ({1000.0: 32}, 4),
    "single-64": ({1000.0: 64}, 6),
    "hcp-3shell": ({1000.0: 90, 2000.0: 90, 3000.0: 90}, 18),
}


def draw_scheme(rng: np.random.Generator, preset: Preset = "random") -> GradientTable:
    """Table of `preset`, or "random": 24-64 directions at b = 950-1050 s/mm² and 3-6 b0 volumes.

    Directions are turned and ordered at random, b-values jitter by about 1 %, b0s are spread over the scan.
    """
    if preset not in get_args(Preset):
        raise ValueError(f"unknown gradient scheme {preset!r}, expected one of {', '.join(get_args(Preset))}")
    if preset == "random":
        shells, n_b0 = {float(rng.uniform(950, 1050)): int(rng.integers(24, 65))}, int(rng.integers(3, 7))
    else:
        shells, n_b0 = PRESETS[preset]
    return shell_table(rng, shells, n_b0)


def shell_table(
    rng: np.random.Generator, shells: dict[float, int], n_b0: int, jitter: float = 0.01
) -> GradientTable:
    """World-frame table of `shells` {b-value in s/mm²: directions} and `n_b0` evenly spread b0 volumes."""
    bvals = np.concatenate([np.full(n, b) for b, n in shells.items()])
    bvecs = np.concatenate([repelled_directions(rng, n) for n in shells.values()])
    bvals *= 1 + jitter * rng.normal(size=len(bvals)).clip(-2, 2)
    order = rng.permutation(len(bvals))
    positions = np.linspace(0, len(bvals), n_b0, endpoint=False).astype(int)
    bvals = np.insert(np.round(bvals[order], 1), positions, 0.0)
    bvecs = np.insert(bvecs[order], positions, 0.0, axis=0)
    return GradientTable(torch.from_numpy(bvals), torch.from_numpy(bvecs))


def repelled_directions(rng: np.random.Generator, n: int, iterations: int = 120) -> np.ndarray:
    """(n, 3) unit vectors on the whole sphere, axes spread by electrostatic repulsion (Jones et al. 1999)."""
    height = (np.arange(n) + 0.5) / n
    angle = np.pi * (1 + 5**0.5) * np.arange(n)
    radius = np.sqrt(1 - height**2)
    spiral = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], axis=1)
    spread, _ = disperse_charges(HemiSphere(xyz=spiral), iterations)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    signs = rng.choice([-1.0, 1.0], (n, 1))
    directions: np.ndarray = spread.vertices @ turn.T * signs
    return directions
