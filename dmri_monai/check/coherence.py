"""Fibre coherence: does a step along the principal direction lead into tissue of the same direction?

A wrong sign or order of the b-vector components turns all directions alike while the voxels stay where they
are, so that directions stop leading to their own continuation (Schilling et al. 2019,
doi:10.1016/j.mri.2019.01.018, and MRtrix's `dwigradcheck`).  Only the step depends on the table: two turned
directions are as parallel as the two given ones.  What lies at some displacement is therefore compared with
what lies there on average, whichever way the fibres run.  Without that, displacements to near neighbours win
on thick slices, and a right table looks wrong there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dmri_monai.check.axis_changes import AXIS_CHANGES, canonical_sign, change_code, describe, turn_deg

__all__ = ["Coherence", "continuation", "judge_coherence", "lattice_steps"]

MIN_FA = 0.25
MAX_SOURCES = 20_000  # voxels to step from: more do not change a verdict
REACH = (0.7, 1.8)  # lengths of steps, in units of the longest voxel side
APART_DEG = 15.0  # between the lines of two steps
CONCENTRATION = 8.0  # of the weight exp(k (cos² - 1)) of a step: half at 17 degrees off the direction
BLOCK = 3  # voxels; neighbouring voxels are not independent evidence, blocks nearly are
MIN_BLOCKS = 20
# The winner must lead by both.  How they were set, and what real and simulated scans score: docs/check.md
MIN_Z = 5.0
MAX_RATIO = 0.7
DISTINCT_DEG = 12.0  # a wrong frame closer than this to an axis change cannot be told from it
SPHERE = 4000  # points that measure solid angles


@dataclass(frozen=True)
class Coherence:
    """Verdict on the axes of a b-vector table.

    verdict: "consistent", "wrong" (another table fits, and clearly better than all others) or "inconclusive" (too
    little anisotropic tissue, or no clear winner).  index, best_index: continuation (-1 to 1, 0 is chance) as read
    and of the best table.  change: (3, 3) matrix that, applied to the columns of the FSL table, makes it the best
    one.  frame: "" for a flip or permutation, else the frame that the file's vectors are in.  z: evidence, the lead of
    the best over the second best in standard errors.
    """

    verdict: str
    index: float
    best_index: float
    change: tuple[tuple[float, ...], ...]
    z: float
    frame: str = ""

    @property
    def description(self) -> str:
        """What is wrong, in words; empty where nothing is, whatever the rival with the best index was."""
        if self.verdict != "wrong":
            return ""
        if self.frame:
            return f"given in {self.frame} instead of along the image's axes"
        return describe(torch.tensor(self.change))

    @property
    def code(self) -> str:
        """Code of the finding; empty where nothing is wrong."""
        if self.verdict != "wrong":
            return ""
        return "bvecs-frame" if self.frame else change_code(torch.tensor(self.change))


def lattice_steps(offsets_mm: Tensor) -> Tensor:
    """(S, 3) steps in voxels to all sides, one of every two opposite ones, of grid `offsets_mm` (3, 3) columns.

    On cubes the 13 lines to the 26 neighbours.  On other grids steps of about the longest voxel side, whichever way
    they go, so that they differ in direction and little in length.
    """
    spacing = offsets_mm.double().norm(dim=0)
    longest = float(spacing.max())
    sizes = [max(1, int(REACH[1] * longest / float(s))) for s in spacing]
    grid = torch.cartesian_prod(*(torch.arange(-n, n + 1) for n in sizes))
    lines = grid.double() @ offsets_mm.double().T
    length = lines.norm(dim=1)
    usable = (length >= REACH[0] * longest) & (length <= REACH[1] * longest + 1e-6)
    order = torch.argsort((length - longest).abs()[usable], stable=True)
    grid, lines = grid[usable][order], (lines / length.clamp(min=1e-9)[:, None])[usable][order]
    kept: list[int] = []
    limit = math.cos(math.radians(APART_DEG))
    for i in range(len(grid)):
        if not kept or float((lines[kept] @ lines[i]).abs().max()) < limit:
            kept.append(i)
    return grid[kept]


def continuation(v1: Tensor, fa: Tensor, offsets_mm: Tensor, changes: Tensor = AXIS_CHANGES) -> Tensor:
    """(K, X, Y, Z) score of each voxel under K changes of the table: what a step along its direction leads to.

    v1: (3, X, Y, Z) unit vectors in the voxel frame.  fa: (X, Y, Z), zero where there is no tissue.
    offsets_mm: (3, 3) columns are the steps along the array axes in the same frame (mm).  changes: (K, 3, 3).
    Two voxels agree by FA (v . v')², the average of their displacement subtracted.  The score is FA times the mean over
    displacements d of that agreement, weighted by the solid angle of d and exp(8 ((P v . d)² - 1)).
    """
    inside = fa > MIN_FA
    index = torch.nonzero(inside)
    vectors, weights = v1[:, inside].T.float().contiguous(), fa[inside].float()
    chosen = torch.linspace(0, len(index) - 1, min(len(index), MAX_SOURCES), dtype=torch.float64).long()
    source, weight, place = vectors[chosen], weights[chosen], index[chosen]
    steps = lattice_steps(offsets_mm)
    lines = torch.nn.functional.normalize(steps.double() @ offsets_mm.double().T, dim=1).float()
    width = int(steps.abs().max())
    row, place = _padded_rows(inside, width), place + width
    total, share = torch.zeros(2, len(chosen), len(changes))
    for step, line, angle in zip(steps, lines, _solid_angles(lines), strict=True):
        agreement = _agreement(source, place, row, step, vectors, weights)
        agreement -= (agreement * weight).sum() / weight.sum().clamp(min=1e-12)
        # (P v) . d = v . (P^T d): the few lines are turned, not the vectors
        kernel = (
            (source @ (line @ changes.float()).T).square_().sub_(1).mul_(CONCENTRATION).exp_().mul_(angle)
        )
        total.addcmul_(kernel, agreement[:, None])
        share += kernel
    out = torch.zeros(len(changes), *fa.shape)
    place = place - width
    out[:, place[:, 0], place[:, 1], place[:, 2]] = (total / share.clamp(min=1e-12) * weight[:, None]).T
    return out


def judge_coherence(
    v1: Tensor, fa: Tensor, offsets_mm: Tensor, fsl_signs: Tensor, frames: dict[str, Tensor] | None = None
) -> Coherence:
    """Compare the b-vectors as read with all 23 other axis changes; first arguments as in `continuation`.

    fsl_signs: (3,) signs that lead from the voxel frame to the FSL file's.  frames: (3, 3) matrices by name that mend
    the directions in the voxel frame if the file holds them in that frame; those close to an axis change are left out.
    The evidence is a z-score of the difference over blocks of 3 x 3 x 3 voxels, so that a small or noisy scan is
    inconclusive, not wrong.
    """
    distinct = {name: m for name, m in (frames or {}).items() if _is_distinct(m)}
    changes = torch.cat([AXIS_CHANGES, *(m.double()[None] for m in distinct.values())])
    score = continuation(v1, fa, offsets_mm, changes).double()
    totals = score.flatten(1).sum(1)
    best = int(totals.argmax())
    rival = _runner_up(totals, best, changes)
    gain = _block_sums(score[best] - score[rival])
    z = float(gain.sum() / gain.square().sum().sqrt().clamp(min=1e-12))
    verdict = "inconclusive"
    if len(gain) >= MIN_BLOCKS and z >= MIN_Z and totals[rival] <= MAX_RATIO * totals[best]:
        verdict = "wrong" if best else "consistent"
    signs = torch.diag(fsl_signs.double())
    change = signs @ changes[best] @ signs
    change = canonical_sign(change) if best < len(AXIS_CHANGES) else change
    size = max(float(fa[score[0] != 0].sum()), 1e-12)
    return Coherence(
        verdict,
        float(totals[0]) / size,
        float(totals[best]) / size,
        tuple(tuple(round(float(v), 10) for v in row) for row in change.tolist()),
        z,
        frame="" if best < len(AXIS_CHANGES) else list(distinct)[best - len(AXIS_CHANGES)],
    )


def _is_distinct(matrix: Tensor) -> bool:
    return min(turn_deg(matrix, change) for change in AXIS_CHANGES) >= DISTINCT_DEG


def _runner_up(totals: Tensor, best: int, changes: Tensor) -> int:
    """The second best; a wrong frame never rivals an axis change that wins: it is only a turned copy of one."""
    rivals = totals[: len(AXIS_CHANGES)].clone() if best < len(AXIS_CHANGES) else totals.clone()
    rivals[best] = -torch.inf
    if best >= len(
        AXIS_CHANGES
    ):  # nor do axis changes close to the winner rival it, except the table as read
        close = [i for i in range(1, len(rivals)) if turn_deg(changes[i], changes[best]) < 2 * DISTINCT_DEG]
        rivals[close] = -torch.inf
    return int(rivals.argmax())


def _solid_angles(lines: Tensor) -> Tensor:
    """(S,) share of the sphere that is nearer to each of `lines` (S, 3) than to the others."""
    k = torch.arange(SPHERE) + 0.5
    z = 1 - k / SPHERE  # a golden spiral over the half sphere
    ring, phi = (1 - z * z).sqrt(), math.pi * (1 + 5**0.5) * k
    nearest = (torch.stack([ring * phi.cos(), ring * phi.sin(), z], dim=1) @ lines.T).abs().argmax(dim=1)
    return torch.bincount(nearest, minlength=len(lines)).float() / SPHERE


def _padded_rows(inside: Tensor, width: int) -> Tensor:
    """Number of each voxel of `inside` (X, Y, Z) in its flat list, -1 elsewhere and `width` voxels around."""
    row = torch.full(inside.shape, -1)
    row[inside] = torch.arange(int(inside.sum()))
    return torch.nn.functional.pad(row, [width] * 6, value=-1)


def _agreement(
    source: Tensor, place: Tensor, row: Tensor, step: Tensor, vectors: Tensor, weights: Tensor
) -> Tensor:
    """(M,) FA (v . v')² of the voxels at `step` before and behind, their mean; 0 where there is no such tissue."""
    out = torch.zeros(len(source))
    for signed in (step, -step):
        at = place + signed
        there = row[at[:, 0], at[:, 1], at[:, 2]]
        found = there.clamp(min=0)
        out += torch.where(there >= 0, (source * vectors[found]).sum(1).square() * weights[found], 0.0)
    return out / 2


def _block_sums(values: Tensor) -> Tensor:
    """(M,) sums of `values` (X, Y, Z) over cubes of BLOCK voxels, those that are zero left out."""
    padding = [p for n in reversed(values.shape) for p in (0, -n % BLOCK)]
    padded = torch.nn.functional.pad(values, padding)
    x, y, z = (n // BLOCK for n in padded.shape)
    sums = padded.reshape(x, BLOCK, y, BLOCK, z, BLOCK).sum(dim=(1, 3, 5)).flatten()
    return sums[sums != 0]
