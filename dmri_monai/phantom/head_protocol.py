"""How a streamed scan is acquired: gradient table, grid, noise, the scanner's habits, as widely as clinics go."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.phantom.fields import rotation
from dmri_monai.phantom.schemes import repelled_directions

__all__ = ["HeadProtocol", "draw_protocol"]

HEAD_MM = (
    180.0,
    215.0,
    150.0,
)  # what a scan covers: left-right, anterior-posterior, brain from crown to foramen
IN_PLANE_MM = 210.0  # from crown to neck, where that is no slice direction
CROWN_MM = 80.0  # above the middle of the brain
PLANE_MM = (1.5, 3.2)  # of a voxel, in plane
SHELLS = (0.62, 0.2, 0.13, 0.05)  # probability of 1, 2, 3, 4 shells
B_ONE_SHELL = ((500.0, 850.0), (850.0, 1300.0), (1300.0, 2200.0), (2200.0, 3200.0))
B_ONE_SHELL_SHARE = (0.1, 0.45, 0.28, 0.17)
DIRECTIONS = (6, 90)
MOST_DIRECTIONS = 110  # of all shells together
SNR = (6.0, 110.0)  # the upper end: clinical scans store averages of several repetitions


@dataclass(frozen=True)
class HeadProtocol:
    """One scan's protocol.

    affine (4, 4) float64 and shape: the grid.  table: world frame.  phase_axis, slice_axis: array axes;
    phase_sign: polarity.  snr: mean white-matter b0 over the noise's SD; coils: receivers whose sum of squares is
    taken; g_factor: largest relative rise of the noise.  blur: weight of each of the two neighbours in plane
    (interpolation by the scanner).  haze: share of the signal that is spread over some centimetre.  ghost:
    amplitude at half the field of view.  fat_shift: voxels along phase encoding.  cut: share of the white
    matter's b0 below which voxels are set to 0; 0 for none.  masked: whether all but the brain is. level: scanner
    units per unit of signal; whole: whether the scanner stores whole numbers. artifacts: preset of further ones,
    or None.
    """

    affine: Tensor
    shape: tuple[int, int, int]
    table: GradientTable
    phase_axis: int
    slice_axis: int
    phase_sign: int
    snr: float
    coils: int
    g_factor: float
    blur: float
    haze: float
    ghost: float
    fat_shift: int
    cut: float
    masked: bool
    level: float
    whole: bool
    artifacts: str | None

    @property
    def phase_world(self) -> np.ndarray:
        """(3,) unit world vector of phase encoding."""
        column = self.affine[:3, self.phase_axis].numpy()
        vector: np.ndarray = self.phase_sign * column / np.linalg.norm(column)
        return vector


def draw_protocol(
    rng: np.random.Generator,
    size: int,
    *,
    artifact_share: float = 0.3,
    most_directions: int = MOST_DIRECTIONS,
    finest_mm: float = PLANE_MM[0],
) -> HeadProtocol:
    """A protocol whose grid has at most `size` voxels an axis: the whole head, or a part of it.

    artifact_share: of the scans that the artifact engine corrupts further.  most_directions: of all shells together,
    at least 24; the time a scan takes grows with it.  finest_mm: smallest size of a voxel.
    """
    affine, shape, slice_axis = _grid(rng, size, finest_mm)
    in_plane = [axis for axis in range(3) if axis != slice_axis]
    along_y = max(in_plane, key=lambda axis: abs(float(affine[1, axis])))
    phase_axis = along_y if rng.random() < 0.8 else in_plane[0] + in_plane[1] - along_y
    cut = rng.random()
    return HeadProtocol(
        affine=affine,
        shape=shape,
        table=_table(rng, most_directions),
        phase_axis=phase_axis,
        slice_axis=slice_axis,
        phase_sign=int(rng.choice([-1, 1])),
        snr=float(np.exp(rng.uniform(*np.log(SNR)))),
        coils=1 if rng.random() < 0.75 else int(rng.integers(2, 9)),
        g_factor=float(rng.choice([1.0, rng.uniform(1.0, 2.2)])),
        blur=float(rng.uniform(0.03, 0.26)) if rng.random() < 0.6 else 0.0,
        haze=float(rng.uniform(0.01, 0.15)) if rng.random() < 0.6 else 0.0,
        ghost=float(rng.uniform(0.005, 0.06)) if rng.random() < 0.35 else 0.0,
        fat_shift=int(rng.integers(-14, 15)),
        cut=float(rng.uniform(0.005, 0.1)) if cut < 0.4 else 0.0,
        masked=cut > 0.93,
        level=float(np.exp(rng.uniform(np.log(300), np.log(300_000)))),
        whole=bool(rng.random() < 0.8),
        artifacts=str(rng.choice(["light", "normal"])) if rng.random() < artifact_share else None,
    )


def _grid(rng: np.random.Generator, size: int, finest_mm: float) -> tuple[Tensor, tuple[int, int, int], int]:
    """Affine, shape and slice axis; axial three times of four, oblique, stored in any order and handedness."""
    plane = float(np.exp(rng.uniform(np.log(finest_mm), np.log(PLANE_MM[1]))))
    kind = rng.random()
    thick = plane if kind < 0.5 else plane * rng.uniform(1.0, 1.5) if kind < 0.8 else rng.uniform(3.0, 6.0)
    normal = int(rng.choice([2, 0, 1], p=[0.75, 0.17, 0.08]))  # world axis nearest to the slice normal
    spacing = np.full(3, plane)
    spacing[normal] = min(max(float(thick), plane), 6.0)
    head = np.array(HEAD_MM)
    head[2] = HEAD_MM[2] if normal == 2 else IN_PLANE_MM
    wanted = head * rng.uniform(0.85, 1.15, 3)
    if rng.random() < 0.2:
        wanted[normal] *= rng.uniform(0.3, 0.8)  # partial coverage
    count = np.minimum(np.round(wanted / spacing).astype(int).clip(12), size)
    covered = count * spacing
    room = np.maximum(head - covered, 0) / 2
    middle = np.array([0.0, 0.0, CROWN_MM - head[2] / 2]) + rng.uniform(-1, 1, 3) * (room + 6.0)
    turn = rotation(rng, 45.0 if rng.random() < 0.12 else 14.0)
    order = rng.permutation(3) if rng.random() < 0.3 else np.arange(3)
    linear = (turn @ np.diag(rng.choice([-1.0, 1.0], 3) * spacing))[:, order]
    stored = count[order]
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = turn @ middle - linear @ (stored - 1) / 2
    x, y, z = (int(n) for n in stored)
    return torch.from_numpy(affine), (x, y, z), int(np.flatnonzero(order == normal)[0])


def _table(rng: np.random.Generator, most: int) -> GradientTable:
    """1-4 shells of 6-90 directions each; one b0 in half of the scans, else up to eight."""
    n_shells = 1 + int(rng.choice(len(SHELLS), p=SHELLS))
    if n_shells == 1:
        low, high = B_ONE_SHELL[int(rng.choice(len(B_ONE_SHELL), p=B_ONE_SHELL_SHARE))]
        shells = [float(rng.uniform(low, high))]
    else:
        edges = np.linspace(600, 3200, n_shells + 1)
        shells = [float(rng.uniform(a, b - 150)) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    low, high = np.log(DIRECTIONS)
    counts = [int(np.exp(rng.uniform(low, high - 0.35 * (n_shells - 1)))) for _ in shells]
    while sum(counts) > most:
        counts[int(np.argmax(counts))] //= 2
    n_b0 = 1 if rng.random() < 0.5 else int(rng.integers(2, 9))
    jitter = 1 + (0.01 * rng.normal() if rng.random() < 0.3 else 0.0)
    bvals = np.concatenate(
        [np.zeros(n_b0), *(np.full(n, round(b * jitter)) for n, b in zip(counts, shells, strict=True))]
    )
    bvecs = np.concatenate([np.zeros((n_b0, 3)), *(_directions(rng, n) for n in counts)])
    return GradientTable(torch.from_numpy(bvals), torch.from_numpy(bvecs))


def _directions(rng: np.random.Generator, n: int) -> np.ndarray:
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    directions: np.ndarray = _spread(n) @ turn.T * rng.choice([-1.0, 1.0], (n, 1))
    return directions


@cache
def _spread(n: int) -> np.ndarray:
    """(n, 3) axes by repulsion: the slow part, made once per number of directions."""
    return repelled_directions(np.random.default_rng(n), n)
