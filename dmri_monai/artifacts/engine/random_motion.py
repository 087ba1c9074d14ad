"""Random head motion, between and within volumes, and the gradients that coils really make."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.artifacts import (
    acquisition_order,
    gradient_deviation,
    gradient_nonlinearity,
    move,
    rotation_matrix,
    shuffle_slices,
    turn_signal,
)
from dmri_monai.artifacts.blockwise import combine
from dmri_monai.artifacts.engine.artifact import (
    Artifact,
    Drawn,
    Range,
    direction,
    numbers,
    some_of,
    uniform,
    whole,
)
from dmri_monai.artifacts.engine.scan_context import ScanContext
from dmri_monai.gradients import cluster_shells
from dmri_monai.qspace.shell_fit import sh_basis, sh_fit_matrix, supported_order

__all__ = ["GradientNonlinearity", "Motion", "SliceMotion", "interpolation_weights"]

L_MAX = 8
TISSUE = 0.7  # mean diffusivity of brain tissue, um2/ms
RANK_TOLERANCE = (
    5e-3  # of the largest singular value: scattered b-values of one shell do not make up for a b0
)


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
        count = min(whole(R, self.events), len(later))
        starts = sorted(int(v) for v in R.choice(later, count, replace=False)) if count else []
        return {
            "starts": starts,
            "rotation_deg": [direction(R, uniform(R, self.rotation_deg)) for _ in starts],
            "translation_mm": [direction(R, uniform(R, self.translation_mm)) for _ in starts],
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
        volumes = some_of(R, np.flatnonzero(scan.weighted), uniform(R, self.share))
        times = _slice_times(scan)
        return {
            "axis": scan.slice_axis,
            "volumes": volumes,
            "slices": [[int(s) for s in np.flatnonzero(times >= R.uniform(0.2, 0.8))] for _ in volumes],
            "rotation_deg": [direction(R, uniform(R, self.rotation_deg)) for _ in volumes],
            "translation_mm": [direction(R, uniform(R, self.translation_mm)) for _ in volumes],
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


@dataclass(frozen=True, kw_only=True)
class GradientNonlinearity(Artifact):
    """Coils make L(x) g instead of g: polynomials of degree 1 and 2 with normal coefficients, none at the
    centre.

    largest: U(low, high), the largest entry of L - 1 on the grid.  Acts through a tensor fitted to the scan.
    """

    name = "gradient_nonlinearity"
    bounds = {"largest": (0, 0.5)}

    largest: Range = (0.02, 0.1)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        return {
            "largest": uniform(R, self.largest),
            "coefficients": numbers(R, 9, 9),
            "hit_volumes": [int(v) for v in np.flatnonzero(scan.weighted)],
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        coefficients = torch.tensor(drawn["coefficients"], dtype=torch.float64)
        weighted = torch.as_tensor(scan.bvals * scan.weighted)
        return gradient_nonlinearity(
            image,
            bvals=weighted,
            bvecs_voxel=torch.as_tensor(scan.bvecs_voxel),
            tensor=_tensor(image, scan),
            deviation=gradient_deviation(coefficients, scan.shape, largest=drawn["largest"], like=image),
        )


def interpolation_weights(
    bvals: Tensor, bvecs_voxel: Tensor, rows: Tensor, rotations: Tensor, l_max: int = L_MAX
) -> Tensor:
    """(M, N) float64: signal of volumes `rows` (M,) at R^T g from all volumes' signals at g, shell by shell.

    bvals (N,), bvecs_voxel (N, 3), rotations (M, 3, 3) in the same frame.  What harmonics up to `l_max` (less
    where a shell has too few directions) do not explain stays with its volume: S(R^T g) = S(g) + (Y(R^T g) -
    Y(g)) c.
    """
    weights = torch.eye(len(bvals), dtype=torch.float64)[rows]
    seen = (bvecs_voxel[rows].double()[:, None] @ rotations.double())[:, 0]
    for shell in cluster_shells(bvals):
        inside = torch.isin(rows, shell.indices)
        directions = bvecs_voxel[shell.indices].double()
        order = supported_order(directions, l_max)
        if order < 2 or not inside.any():
            continue
        change = sh_basis(seen[inside], order) - sh_basis(bvecs_voxel[rows[inside]].double(), order)
        index = torch.nonzero(inside).flatten()
        weights[index[:, None], shell.indices[None]] += change @ sh_fit_matrix(directions, order)
    return weights


def _poses(drawn: Drawn, scan: ScanContext) -> tuple[Tensor, Tensor]:
    """Rotations (M, 3, 3) and translations (M, 3) of the canonical voxel frame from those of the world."""
    q = torch.from_numpy(scan.rotation)
    vectors = torch.deg2rad(torch.tensor(drawn["rotation_deg"], dtype=torch.float64))
    translations = torch.tensor(drawn["translation_mm"], dtype=torch.float64)
    return q.T @ rotation_matrix(vectors) @ q, translations @ q


def _moved(image: Tensor, scan: ScanContext, rows: Tensor, rotations: Tensor, translations: Tensor) -> Tensor:
    """Volumes `rows` (M,) of the moved head."""
    bvals, bvecs = torch.as_tensor(scan.bvals), torch.as_tensor(scan.bvecs_voxel)
    weights = interpolation_weights(bvals, bvecs, rows, rotations)
    turned = turn_signal(image, weights=weights)
    return move(turned, rotations=rotations, translations_mm=translations, spacing_mm=scan.spacing_mm)


def _slice_times(scan: ScanContext) -> np.ndarray:
    """(S,) acquisition times, 0 to 1."""
    if scan.slice_timing_s is None:
        return acquisition_order(scan.n_slices, multiband=scan.multiband).numpy()
    times = np.asarray(scan.slice_timing_s) - min(scan.slice_timing_s)
    return times / max(float(times.max()), 1e-9)


def _tensor(image: Tensor, scan: ScanContext) -> Tensor:
    """(6, X, Y, Z) unweighted log-linear tensor in mm2/s.

    What the table cannot tell (without b0, attenuation from a darker voxel) stays as in isotropic tissue.
    """
    b, g = scan.bvals * scan.weighted / 1000, scan.bvecs_voxel
    pairs = ((0, 0, 1), (1, 1, 1), (2, 2, 1), (0, 1, 2), (0, 2, 2), (1, 2, 2))
    design = np.stack([np.ones_like(b), *(-b * times * g[:, i] * g[:, j] for i, j, times in pairs)], -1)
    solve = np.linalg.pinv(design, rcond=RANK_TOLERANCE)[1:]
    unseen = b if scan.weighted.all() else 0 * b  # the reference has lost this much already
    floor = max(1e-3 * scan.reference, 1e-6)
    usual = np.array([math.log(max(scan.reference, floor)) + TISSUE * unseen.mean(), *[TISSUE] * 3, 0, 0, 0])
    rest = torch.as_tensor(usual[1:] - solve @ (design @ usual)).to(image)
    fitted = combine(torch.as_tensor(solve).to(image), image.clamp(min=floor).log_())
    return fitted.add_(rest.view(-1, 1, 1, 1)).div_(1000)
