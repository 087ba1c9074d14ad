"""Fibre coherence: do principal directions lead from voxel to voxel, or would they after an axis flip?

A wrong sign or order of the b-vector components turns all directions alike while the voxels stay where they
are, so neighbouring directions stop pointing at each other.  Reference: Schilling et al. 2019,
doi:10.1016/j.mri.2019.01.018
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["AXIS_CHANGES", "Coherence", "coherence_index", "describe", "judge_coherence"]

MAX_ANGLE = math.pi / 6
MIN_FA = 0.25
BLOCK = 3  # voxels; neighbouring voxels are not independent evidence, blocks nearly are
MIN_BLOCKS = 20
MIN_Z = 4.0  # 23 alternatives are compared: at z = 4 chance alone alarms in less than 1 of 1000 scans
MIN_GAIN = 1.15  # to accuse a table: a fan of fibres, right as it is, gains up to 1.12 when turned
MIN_LEAD = 1.05  # to acquit it
WHOLE_BRAIN_ML = 100.0  # of anisotropic tissue: many bundles, of which no single fan decides, so that
MIN_GAIN_WHOLE, MIN_Z_WHOLE = 1.05, 8.0  # a smaller gain with stronger evidence accuses as well


def _axis_changes() -> Tensor:
    """(24, 3, 3) signed permutations up to a common sign, the identity first."""
    changes = []
    for order in itertools.permutations(range(3)):
        for signs in ((1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)):
            changes.append(
                torch.diag(torch.tensor(signs, dtype=torch.float64)) @ torch.eye(3).double()[list(order)]
            )
    return torch.stack(changes)


AXIS_CHANGES = _axis_changes()


@dataclass(frozen=True)
class Coherence:
    """Verdict on the axes of a b-vector table.

    verdict: "consistent", "wrong" (another axis change fits significantly better) or "inconclusive" (too
    little anisotropic tissue, or no clear winner).  index, best_index: coherence as read and of the best axis
    change. change: (3, 3) signed permutation that, applied to the columns of the FSL table, mends it.  z:
    evidence.
    """

    verdict: str
    index: float
    best_index: float
    change: tuple[tuple[int, ...], ...]
    z: float

    @property
    def description(self) -> str:
        """What is wrong, in words; empty where nothing is, whatever the rival with the best index was."""
        return describe(torch.tensor(self.change)) if self.verdict == "wrong" else ""


def coherence_index(v1: Tensor, fa: Tensor, offsets_mm: Tensor, changes: Tensor = AXIS_CHANGES) -> Tensor:
    """(K, X, Y, Z) contribution of each voxel to the fibre coherence index of K axis changes.

    v1: (3, X, Y, Z) unit vectors in the voxel frame.  fa: (X, Y, Z), zero where there is no tissue.
    offsets_mm: (3, 3) columns are the steps along the array axes in the same frame (mm).  changes: (K, 3, 3).
    A pair of neighbours (26-neighbourhood, FA > 0.25 both) adds FA_i + FA_j, half to each, where both
    directions lie within 30 degrees of the line between them; the index is the sum over voxels.
    """
    anisotropic = fa > MIN_FA
    row = torch.full(fa.shape, -1).masked_scatter_(anisotropic, torch.arange(int(anisotropic.sum())))
    vectors, weights, changes = v1[:, anisotropic].float(), fa[anisotropic].float(), changes.float()
    total = torch.zeros(len(weights), len(changes))
    for step in _half_neighbourhood():
        here, there = _neighbours(row, step)
        line = offsets_mm.float() @ torch.tensor(step).float()
        lines = (
            line / line.norm()
        ) @ changes  # |(P v) . d| = |v . (P^T d)|: turn the few lines, not the vectors
        aligned = (vectors.T @ lines.T).abs() >= math.cos(MAX_ANGLE)
        share = 0.5 * (weights[here] + weights[there])[:, None] * (aligned[here] & aligned[there])
        total.index_add_(0, here, share).index_add_(0, there, share)
    out = torch.zeros(len(changes), *fa.shape)
    out[:, anisotropic] = total.T
    return out


def judge_coherence(v1: Tensor, fa: Tensor, offsets_mm: Tensor, fsl_signs: Tensor) -> Coherence:
    """Compare the b-vectors as read with all 23 other axis changes; arguments as in `coherence_index`.

    fsl_signs: (3,) signs that lead from the voxel frame to the FSL file's.  The evidence is a z-score of the
    difference over blocks of 3 x 3 x 3 voxels, so that a small or noisy scan is inconclusive, not wrong.
    """
    score = coherence_index(v1, fa, offsets_mm).double()
    totals = score.flatten(1).sum(1)
    best = int(totals.argmax())
    rival = 0 if best else int(totals[1:].argmax()) + 1
    gain = _block_sums(score[best] - score[rival])
    z = float(gain.sum() / gain.square().sum().sqrt().clamp(min=1e-12))
    verdict = "inconclusive"
    if len(gain) >= MIN_BLOCKS and z >= MIN_Z:
        volume_ml = float((fa > MIN_FA).sum()) * abs(float(torch.linalg.det(offsets_mm.double()))) / 1000
        whole = volume_ml >= WHOLE_BRAIN_ML and z >= MIN_Z_WHOLE
        if best and totals[best] >= (MIN_GAIN_WHOLE if whole else MIN_GAIN) * totals[0]:
            verdict = "wrong"
        elif not best and totals[0] >= MIN_LEAD * totals[rival]:
            verdict = "consistent"
    signs = torch.diag(fsl_signs.double())
    change = _canonical_sign(signs @ AXIS_CHANGES[best] @ signs)
    change_rows = tuple(tuple(int(v) for v in row) for row in change.tolist())
    size = max(float((fa > MIN_FA).sum()), 1.0)
    return Coherence(verdict, float(totals[0]) / size, float(totals[best]) / size, change_rows, z)


def describe(change: Tensor) -> str:
    """Words for a (3, 3) signed permutation of b-vector components.

    >>> describe(torch.diag(torch.tensor([-1, 1, 1])))
    'flipped in x'
    >>> describe(torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, -1]]))
    'swapped between x and y, flipped in z'
    """
    change = _canonical_sign(change)
    order = change.abs().argmax(dim=1).tolist()
    flipped = ["xyz"[i] for i in range(3) if change[i, order[i]] < 0]
    moved = ["xyz"[i] for i in range(3) if order[i] != i]
    words = []
    if len(moved) == 2:
        words.append(f"swapped between {moved[0]} and {moved[1]}")
    elif moved:
        words.append("permuted: x y z stand where " + " ".join("xyz"[i] for i in order) + " belong")
    if flipped:
        words.append("flipped in " + " and ".join(flipped))
    return ", ".join(words)


def _canonical_sign(change: Tensor) -> Tensor:
    """Of `change` and its negative the one with fewer minus signs: directions have no sign."""
    return -change if int((change < 0).sum()) > 1 else change


def _half_neighbourhood() -> list[tuple[int, int, int]]:
    steps = (-1, 0, 1)
    return [(x, y, z) for x in steps for y in steps for z in steps if (x, y, z) > (0, 0, 0)]


def _neighbours(row: Tensor, step: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Entries of `row` (X, Y, Z) and of their neighbours at `step` where both exist and are not -1."""
    sizes = list(zip(step, row.shape, strict=True))
    here = row[tuple(slice(max(0, -s), n - max(0, s)) for s, n in sizes)].flatten()
    there = row[tuple(slice(max(0, s), n - max(0, -s)) for s, n in sizes)].flatten()
    both = (here >= 0) & (there >= 0)
    return here[both], there[both]


def _block_sums(values: Tensor) -> Tensor:
    """(M,) sums of `values` (X, Y, Z) over cubes of BLOCK voxels, those that are zero left out."""
    padding = [p for n in reversed(values.shape) for p in (0, -n % BLOCK)]
    padded = torch.nn.functional.pad(values, padding)
    x, y, z = (n // BLOCK for n in padded.shape)
    sums = padded.reshape(x, BLOCK, y, BLOCK, z, BLOCK).sum(dim=(1, 3, 5)).flatten()
    return sums[sums != 0]
