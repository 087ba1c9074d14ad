"""Draw the artifacts of a preset, and apply what was drawn: neighbours of a kind in one pass."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dmri_monai.artifacts import displace
from dmri_monai.artifacts.engine.catalogue import ARTIFACTS
from dmri_monai.artifacts.engine.presets import Preset
from dmri_monai.artifacts.engine.scan_context import ScanContext
from dmri_monai.artifacts.lines import filter_lines
from dmri_monai.artifacts.magnitudes import without_looking

__all__ = ["apply", "draw", "random_state"]


def draw(preset: Preset, seed: int, scan: ScanContext) -> list[dict[str, Any]]:
    """What each artifact drew, in physical order."""
    applied = []
    for artifact in preset.artifacts:
        R = random_state(seed, artifact.name)
        if R.uniform() < artifact.prob:
            applied.append({"artifact": artifact.name, "drawn": artifact.draw(R, scan)})
    return applied


def random_state(seed: int, name: str) -> np.random.RandomState:
    """Stream of the artifact `name` in one item: artifacts do not move each other's draws."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, zlib.crc32(name.encode())])))


def apply(image: Tensor, applied: Sequence[dict[str, Any]], scan: ScanContext) -> Tensor:
    """Neighbours that displace, or that filter lines, act together: their shifts add, their gains multiply."""
    with _reproducibly(image.device), without_looking():
        for step, group in groupby(applied, key=lambda entry: ARTIFACTS[entry["artifact"]].step):
            if step == "displace":
                image = _displaced(image, group, scan)
            elif step == "filter":
                image = _filtered(image, group, scan)
            else:
                for entry in group:
                    image = ARTIFACTS[entry["artifact"]].apply(image, entry["drawn"], scan)
    return image


@contextmanager
def _reproducibly(device: torch.device) -> Iterator[None]:
    """No autocast, and one thread on a CPU: vectorised loops and matrix products round by how they are split.

    Workers of a data loader have one thread anyway; the functions of `dmri_monai.artifacts` use all there are.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if device.type == "cpu":
            torch.set_num_threads(threads)


def _displaced(image: Tensor, group: Iterable[dict[str, Any]], scan: ScanContext) -> Tensor:
    shift, modes, axis = None, None, 0
    for entry in group:
        axis = entry["drawn"]["axis"]
        common, weights = ARTIFACTS[entry["artifact"]].displacement(entry["drawn"], scan, image)
        shift = common if shift is None else shift if common is None else shift + common
        modes = weights if modes is None else modes if weights is None else modes + weights
    return displace(image, axis=axis, shift=shift, modes=modes)


def _filtered(image: Tensor, group: Iterable[dict[str, Any]], scan: ScanContext) -> Tensor:
    gains: dict[int, Tensor] = {}
    for entry in group:
        for axis, gain in ARTIFACTS[entry["artifact"]].gains(entry["drawn"], scan).items():
            gains[axis] = gains[axis] * gain if axis in gains else gain
    return filter_lines(image, gains)
