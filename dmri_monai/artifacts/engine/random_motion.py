"""Random head motion, between and within volumes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.artifacts import acquisition_order, move, rotation_matrix, shuffle_slices, turn_signal
from dmri_monai.artifacts.engine.artifact import Artifact, Drawn, Range
from dmri_monai.artifacts.engine.random_numbers import random_subset, random_vector, uniform, whole_number
from dmri_monai.artifacts.engine.scan_context import ScanContext
from dmri_monai.artifacts.motion import interpolation_weights

__all__ = ["Motion", "SliceMotion"]


@dataclass(frozen=True, kw_only=True)
class Motion(Artifact):
    """The head moves between volumes and stays in its new pose until it moves again; the first volume is at
    rest.

    events: whole number from low to high of movements, before volumes drawn without repetition.
    rotation_deg, translation_mm: U(low, high) for every pose, away from rest, about and along uniform
    directions of the world. Each moved volume shows the turned head under the gradient as applied; the table
    stays as acquired.
    """

    name = "motion"
    bounds = {"events": (0, 1000), "rotation_deg": (0, 90), "translation_mm": (0, 100)}
    counts = ("events",)

    events: Range = (1, 5)
    rotation_deg: Range = (0.5, 2.0)
    translation_mm: Range = (0.5, 2.0)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        later = np.arange(1, scan.n_volumes)
        count = min(whole_number(R, self.events), len(later))
        starts = sorted(int(v) for v in R.choice(later, count, replace=False)) if count else []
        return {
            "starts": starts,
            "rotation_deg": [random_vector(R, uniform(R, self.rotation_deg)) for _ in starts],
            "translation_mm": [random_vector(R, uniform(R, self.translation_mm)) for _ in starts],
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        starts = drawn["starts"]
        if not starts:
            return image
        pose = np.searchsorted(starts, np.arange(starts[0], len(image)), side="right") - 1
        rows = torch.arange(starts[0], len(image))
        rotations, translations = _poses(drawn, scan)
        moved = _moved(image, scan, rows, rotations[pose], translations[pose])
        return torch.cat([image[: starts[0]], moved])

    @staticmethod
    def hits(drawn: Drawn, n_volumes: int, n_slices: int) -> np.ndarray:
        hit = np.zeros((n_volumes, n_slices), dtype=bool)
        if drawn["starts"]:
            hit[drawn["starts"][0] :] = True
        return hit


@dataclass(frozen=True, kw_only=True)
class SliceMotion(Artifact):
    """The head moves while a volume is acquired: later slices show it moved, in their order of acquisition.

    share: U(low, high), of the diffusion-weighted volumes.  rotation_deg, translation_mm: as for `Motion`.
    The time of the movement is U(0.2, 0.8) of the volume's.  Slice timing is the scan's, or interleaved by
    two.
    """

    name = "slice_motion"
    bounds = {"share": (0, 1), "rotation_deg": (0, 90), "translation_mm": (0, 100)}

    share: Range = (0.01, 0.1)
    rotation_deg: Range = (0.5, 2.0)
    translation_mm: Range = (0.5, 2.0)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        volumes = random_subset(R, np.flatnonzero(scan.weighted), uniform(R, self.share))
        times = _slice_times(scan)
        return {
            "axis": scan.slice_axis,
            "volumes": volumes,
            "slices": [[int(s) for s in np.flatnonzero(times >= R.uniform(0.2, 0.8))] for _ in volumes],
            "rotation_deg": [random_vector(R, uniform(R, self.rotation_deg)) for _ in volumes],
            "translation_mm": [random_vector(R, uniform(R, self.translation_mm)) for _ in volumes],
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        rows = torch.as_tensor(drawn["volumes"], dtype=torch.long)
        if not len(rows):
            return image
        moved = _moved(image, scan, rows, *_poses(drawn, scan))
        after = torch.zeros(len(rows), image.shape[1 + drawn["axis"]], dtype=torch.bool)
        for event, slices in enumerate(drawn["slices"]):
            after[event, slices] = True
        return shuffle_slices(image, moved=moved, volumes=rows, after=after, axis=drawn["axis"])

    @staticmethod
    def hits(drawn: Drawn, n_volumes: int, n_slices: int) -> np.ndarray:
        hit = np.zeros((n_volumes, n_slices), dtype=bool)
        for volume, slices in zip(drawn["volumes"], drawn["slices"], strict=True):
            hit[volume, slices] = True
        return hit


def _poses(drawn: Drawn, scan: ScanContext) -> tuple[Tensor, Tensor]:
    """Rotations (M, 3, 3) and translations (M, 3) of the canonical voxel frame from those of the world."""
    q = torch.from_numpy(scan.rotation)
    vectors = torch.deg2rad(torch.tensor(drawn["rotation_deg"], dtype=torch.float64))
    translations = torch.tensor(drawn["translation_mm"], dtype=torch.float64)
    return q.T @ rotation_matrix(vectors) @ q, translations @ q


def _moved(image: Tensor, scan: ScanContext, rows: Tensor, rotations: Tensor, translations: Tensor) -> Tensor:
    """Volumes `rows` (M,) of the moved head."""
    bvals, bvecs = torch.as_tensor(scan.bvals), torch.as_tensor(scan.bvecs_voxel)
    weights = interpolation_weights(bvals, bvecs, rows, rotations, b0_threshold=scan.b0_threshold)
    turned = turn_signal(image, weights=weights)
    return move(turned, rotations=rotations, translations_mm=translations, spacing_mm=scan.spacing_mm)


def _slice_times(scan: ScanContext) -> np.ndarray:
    """(S,) acquisition times, 0 to 1."""
    if scan.slice_timing_s is None:
        return acquisition_order(scan.n_slices, multiband=scan.multiband).numpy()
    times = np.asarray(scan.slice_timing_s) - min(scan.slice_timing_s)
    return times / max(float(times.max()), 1e-9)
