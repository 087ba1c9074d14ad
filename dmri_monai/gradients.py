"""Gradient tables and the frames their directions live in.

Three frames exist. *World* is RAS+ scanner space in millimetres: the frame b-vectors are stored in. *Voxel*
is the frame of the image's array axes: what a kernel or a fit on the array sees. *FSL* is the voxel frame
with x mirrored on right-handed grids: what `.bvec` files hold (BIDS specification; MRtrix3
`core/dwi/gradient.cpp`).
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "GradientTable",
    "Shell",
    "b0_threshold_of",
    "check_bvals",
    "cluster_shells",
    "grid_rotation",
    "no_b0_message",
    "q_vectors",
    "unit_vectors",
    "world_from_fsl",
]

B0_THRESHOLD = 50.0
NORM_TOLERANCE = 0.05
NORM_ROUNDING = 1e-3  # closer to 1 than this is the rounding of a text file
HIGHEST_B0 = 200.0  # s/mm²: no scanner's b0 lies above
JITTER_ABSOLUTE = 50.0
JITTER_RELATIVE = 0.05
MAX_BVAL = 1e6  # s/mm²; ten times what the strongest scanners reach


def grid_rotation(affine: Tensor) -> Tensor:
    """(3, 3) orthogonal polar factor Q of `affine` (4, 4) or (3, 3), float64; det -1 on a left-handed grid.

    v_world = Q v_voxel.  Raises ValueError when the grid axes are not finite or not independent.
    """
    linear = _linear_part(affine)
    if not linear.isfinite().all():
        raise ValueError(f"affine is not finite: {linear.tolist()}")
    u, singular, vh = torch.linalg.svd(linear)
    if singular[-1] <= 1e-6 * singular[0]:
        raise ValueError(
            f"affine is singular: smallest axis scale {singular[-1]:.3g}, largest {singular[0]:.3g}"
        )
    return u @ vh


def q_vectors(bvals: Tensor, bvecs_voxel: Tensor, b_max: float) -> Tensor:
    """(..., N, 3) q-vectors sqrt(b / b_max) g in the frame of `bvecs_voxel`; bvals (..., N) s/mm².

    `b_max` (s/mm²) is a constant of the model, never the scan's maximum: scans at b = 1000 and b = 3000 would
    otherwise look the same.
    """
    if not b_max > 0:
        raise ValueError(f"b_max must be positive, got {b_max}")
    return (bvals.clamp(min=0) / b_max).sqrt().unsqueeze(-1) * bvecs_voxel


@dataclass(frozen=True, eq=False)
class Shell:
    """Measurements of one b-value: `bval` (their mean, s/mm²) and ascending `indices` (M,) into the table."""

    bval: float
    indices: Tensor


def cluster_shells(bvals: Tensor, b0_threshold: float = B0_THRESHOLD) -> tuple[Shell, ...]:
    """Shells of (N,) b-values above `b0_threshold`, ascending; every volume above it is in exactly one.

    A shell is a set of b-values that all lie within 5 % or 50 s/mm² (the larger) of their mid-range.
    Neighbours on the b-axis are joined, smallest gap first, wherever the joined set is still a shell:
    1000..1100 is one shell, 1000 and 1200 are two, and evenly spaced values cannot chain up into one. Order
    and repetition of volumes do not matter.

    >>> for shell in cluster_shells(torch.tensor([0.0, 710, 690, 1010, 990, 2000])):
    ...     print(round(shell.bval))
    700
    1000
    2000
    """
    weighted = bvals > b0_threshold
    edges = _shell_edges(torch.unique(bvals[weighted]).tolist())
    shells = []
    for low, high in edges:
        indices = torch.nonzero((bvals >= low) & (bvals <= high) & weighted).flatten()
        shells.append(Shell(float(bvals[indices].double().mean()), indices))
    return tuple(shells)


def _shell_edges(values: list[float]) -> list[tuple[float, float]]:
    """Lowest and highest member of each shell of sorted distinct `values`."""
    group = {i: (i, i) for i in range(len(values))}  # first and last member, kept up to date at both ends
    # a join refused once stays refused, groups only grow: one pass over the gaps is enough
    for i in sorted(range(len(values) - 1), key=lambda i: values[i + 1] - values[i]):
        first, last = group[i][0], group[i + 1][1]
        if _is_one_shell(values[first], values[last]):
            group[first] = group[last] = (first, last)
    edges, start = [], 0
    while start < len(values):
        last = group[start][1]
        edges.append((values[start], values[last]))
        start = last + 1
    return edges


def _is_one_shell(low: float, high: float) -> bool:
    centre, half_width = (low + high) / 2, (high - low) / 2
    return half_width <= max(JITTER_ABSOLUTE, JITTER_RELATIVE * centre) * (1 + 1e-6)  # float32 tables round


@dataclass(frozen=True)
class GradientTable:
    """b-values (N,) in s/mm² and unit b-vectors (N, 3) in the world frame (RAS+), zero for b0; float64.

    b0 volumes are those with bval <= `b0_threshold`; their vectors are set to zero, whatever the file says.
    Vectors within 5 % of unit length are normalised (see :func:`unit_vectors`); anything else raises
    ValueError naming the entry. Both tensors are copies on the device of `bvals`; affines may live on any
    device.

    >>> table = GradientTable(torch.tensor([0.0, 1000.0]), torch.tensor([[0.0, 0, 0], [0, 0, 1]]))
    >>> table.b0_mask.tolist(), [round(s.bval) for s in table.shells()]
    ([True, False], [1000])
    """

    bvals: Tensor
    bvecs: Tensor
    b0_threshold: float = B0_THRESHOLD

    def __post_init__(self) -> None:
        bvals = _plain(self.bvals)
        bvecs = _plain(self.bvecs).to(bvals.device)
        if bvals.ndim != 1:
            raise ValueError(f"b-values: shape {tuple(bvals.shape)}, expected (N,)")
        if bvecs.shape != (len(bvals), 3):
            raise ValueError(
                f"b-vectors: shape {tuple(bvecs.shape)} for {len(bvals)} b-values, expected (N, 3)"
            )
        if not (math.isfinite(self.b0_threshold) and self.b0_threshold >= 0):
            raise ValueError(f"b0_threshold is {self.b0_threshold}, expected a finite number of at least 0")
        check_bvals(bvals)
        # adding zero turns -0.0 into 0.0: files then compare equal
        object.__setattr__(self, "bvals", bvals.clone() + 0.0)
        object.__setattr__(self, "bvecs", unit_vectors(bvals, bvecs, self.b0_threshold) + 0.0)

    def __len__(self) -> int:
        return len(self.bvals)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GradientTable):
            return NotImplemented
        same = torch.equal(self.bvals.cpu(), other.bvals.cpu()) and torch.equal(
            self.bvecs.cpu(), other.bvecs.cpu()
        )
        return same and self.b0_threshold == other.b0_threshold

    def __hash__(self) -> int:
        return hash((tuple(self.bvals.tolist()), tuple(self.bvecs.flatten().tolist()), self.b0_threshold))

    @property
    def sha256(self) -> str:
        """First 16 digits of the SHA-256 of the b-values and then the b-vectors, as float64."""
        content = self.bvals.cpu().numpy().tobytes() + self.bvecs.cpu().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    @classmethod
    def from_fsl(
        cls, bvals: Tensor, bvecs_fsl: Tensor, affine: Tensor, b0_threshold: float = B0_THRESHOLD
    ) -> GradientTable:
        """Table from FSL/BIDS vectors (N, 3) of an image with `affine` (4, 4)."""
        bvecs = _plain(bvecs_fsl)
        if bvecs.ndim != 2 or bvecs.shape[1] != 3:
            raise ValueError(f"b-vectors: shape {tuple(bvecs.shape)}, expected (N, 3)")
        return cls(bvals, bvecs @ world_from_fsl(affine).T.to(bvecs.device), b0_threshold)

    def to_fsl(self, affine: Tensor) -> Tensor:
        """(N, 3) b-vectors as a `.bvec` file of an image with `affine` (4, 4) holds them."""
        return self.bvecs @ world_from_fsl(affine).to(self.bvecs.device) + 0.0

    def in_voxel_frame(self, affine: Tensor) -> Tensor:
        """(N, 3) b-vectors in the voxel frame of `affine` (4, 4). v_voxel = Q^T v_world, Q = polar(A)."""
        return self.bvecs @ grid_rotation(affine).to(self.bvecs.device)

    def q_vectors(self, affine: Tensor, b_max: float) -> Tensor:
        """(N, 3) q-vectors sqrt(b / b_max) g in the voxel frame of `affine`; see :func:`q_vectors`."""
        return q_vectors(self.bvals, self.in_voxel_frame(affine), b_max)

    def to_dipy(self) -> Any:
        """DIPY's gradient table, its vectors in the world frame like these."""
        from dipy.core.gradients import gradient_table

        bvals, bvecs = self.bvals.cpu().numpy(), self.bvecs.cpu().numpy()
        return gradient_table(bvals, bvecs=bvecs, b0_threshold=self.b0_threshold)

    @property
    def b0_mask(self) -> Tensor:
        """(N,) bool: volumes with bval <= b0_threshold."""
        return self.bvals <= self.b0_threshold

    @property
    def b0_range(self) -> tuple[float, float] | None:
        """Lowest and highest b-value (s/mm²) that counts as b0; None where no volume does."""
        b0 = self.bvals[self.b0_mask]
        return (float(b0.min()), float(b0.max())) if len(b0) else None

    def shells(self) -> tuple[Shell, ...]:
        """Shells above the b0 threshold, ascending; see :func:`cluster_shells`."""
        return cluster_shells(self.bvals, self.b0_threshold)

    def select(self, mask: Tensor) -> GradientTable:
        """New table of the volumes in `mask`: (N,) bool, or (M,) integer indices in the wanted order."""
        mask = torch.as_tensor(mask).to(self.bvals.device)
        if mask.ndim != 1 or mask.is_floating_point():
            raise TypeError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}, expected 1-D bool or integer"
            )
        if mask.dtype == torch.bool and mask.shape != self.bvals.shape:
            raise ValueError(f"mask has {tuple(mask.shape)} entries for {len(self)} volumes")
        if (
            mask.dtype != torch.bool
            and len(mask)
            and not -len(self) <= int(mask.min()) <= int(mask.max()) < len(self)
        ):
            raise ValueError(f"indices from {int(mask.min())} to {int(mask.max())} for {len(self)} volumes")
        mask = mask if mask.dtype == torch.bool else mask.long()
        return GradientTable(self.bvals[mask], self.bvecs[mask], self.b0_threshold)


def b0_threshold_of(image: Tensor) -> float:
    """The b-value (s/mm²) up to which a volume of `image` counts as b0: what its reader was told, else the default."""
    meta: Mapping[str, Any] = getattr(image, "meta", {})
    return float(meta.get("b0_threshold", B0_THRESHOLD))


def check_bvals(bvals: Tensor, *, source: str = "") -> None:
    """Raise ValueError naming the first of `bvals` (N,) that is no b-value in s/mm², and `source` (a file)."""
    place = f" in {source}" if source else ""
    for i in torch.nonzero(~bvals.isfinite()).flatten().tolist():
        raise ValueError(f"b-value {i} is {bvals[i]}, expected a finite number{place}")
    for i in torch.nonzero(bvals < 0).flatten().tolist():
        raise ValueError(f"b-value {i} is {bvals[i]:g}, expected at least 0{place}")
    for i in torch.nonzero(bvals > MAX_BVAL).flatten().tolist():
        raise ValueError(f"b-value {i} is {bvals[i]:g}, expected s/mm², at most {MAX_BVAL:g}{place}")


def unit_vectors(
    bvals: Tensor, bvecs: Tensor, b0_threshold: float = B0_THRESHOLD, *, source: str = ""
) -> Tensor:
    """`bvecs` (N, 3) in any frame scaled to unit length where bval (N,) > `b0_threshold`, zero elsewhere.

    Lengths up to 5 % off are normalised, with one warning if any is off by more than rounding (0.1 %). Raises
    ValueError naming the first entry that is not finite or further off. Three NaN are how some tools write
    "no direction", as three zeros: they pass where the b-value says b0. `source` (a file) is named in both.
    """
    place = f" in {source}" if source else ""
    weighted = bvals > b0_threshold
    no_direction = bvecs.isnan().all(dim=1)
    for i in torch.nonzero(~bvecs.isfinite().all(dim=1) & ~no_direction).flatten().tolist():
        raise ValueError(f"b-vector {i} is {bvecs[i].tolist()}, expected finite numbers{place}")
    norms = torch.where(no_direction, 0.0, bvecs.norm(dim=1))
    error = torch.where(weighted, (norms - 1).abs(), 0.0)
    for i in torch.nonzero(error > NORM_TOLERANCE).flatten().tolist():
        if norms[i] > NORM_TOLERANCE:
            raise ValueError(_norm_message(i, bvals, norms) + place)
        raise ValueError(_undirected_message(i, bvals, norms, b0_threshold, place))
    if (off := int((error > NORM_ROUNDING).sum())) > 0:
        worst = int(error.argmax())
        warnings.warn(
            f"{off} of {len(bvals)} b-vectors renormalised; b-vector {worst} has length {norms[worst]:.4f}"
            f"{place}",
            stacklevel=2,
        )
    return torch.where(weighted.unsqueeze(1), bvecs / norms.unsqueeze(1), torch.zeros_like(bvecs))


def _norm_message(i: int, bvals: Tensor, norms: Tensor) -> str:
    bval, length, b_max = float(bvals[i]), float(norms[i]), float(bvals.max())
    message = f"b-vector {i} has length {length:.3f}, expected 1 +- {NORM_TOLERANCE} (b = {bval:g})"
    root = math.sqrt(bval / b_max)
    if abs(length - root) <= NORM_TOLERANCE * root:
        return f"{message}; sqrt(b/b_max) = {root:.3f}: the shell seems to be encoded in the vector length"
    if bval == b_max and 0 < length < 1:
        return f"{message}; the shell may be encoded in the vector length (then b = {bval * length**2:.0f})"
    return message


def _undirected_message(i: int, bvals: Tensor, norms: Tensor, b0_threshold: float, place: str) -> str:
    """A weighted volume without direction is the scanner's average over directions, or a b0 above the threshold."""
    bval = float(bvals[i])
    shell = next(s for s in cluster_shells(bvals, b0_threshold) if i in s.indices)
    lowest = bool((bvals[bvals > b0_threshold] >= bvals[shell.indices].min()).all())
    undirected = not bool((norms[shell.indices] > NORM_TOLERANCE).any())
    no_b0 = not bool((bvals <= b0_threshold).any())
    highest = float(bvals[shell.indices].max())
    if lowest and undirected and (no_b0 or highest <= HIGHEST_B0) and len(shell.indices) < len(bvals):
        if no_b0:
            return no_b0_message(bvals, b0_threshold, wanted=highest, place=place)
        return (
            f"zero vector at b = {bval:g} (volume {i}), above b0_threshold {b0_threshold:g}{place}: "
            f"if the volumes up to it are b0, give b0_threshold={highest:g}"
        )
    if not bool((norms[bvals > b0_threshold] > NORM_TOLERANCE).any()):
        return f"zero vectors at all b above {b0_threshold:g}{place}: a scan of trace-weighted volumes, or no table"
    return (
        f"zero vector at b = {bval:g} (volume {i}){place}: probably the scanner's trace or ADC volume, "
        "the mean over directions; `dmri-monai fix` leaves it out"
    )


def no_b0_message(bvals: Tensor, b0_threshold: float, *, wanted: float | None = None, place: str = "") -> str:
    """What to tell a user whose scan has no b-value (N,) up to `b0_threshold`.

    wanted: the threshold to suggest; by default the lowest b where that may be a scanner's b0.
    """
    low = float(bvals.min()) if len(bvals) else math.nan
    wanted = low if wanted is None and low <= HIGHEST_B0 else wanted
    advice = "" if wanted is None else f"; give b0_threshold={wanted:g}"
    return f"no b0 volume{place}: lowest b is {low:g}, above b0_threshold {b0_threshold:g}{advice}"


def _plain(values: Tensor) -> Tensor:
    """Float64 tensor without history or subclass (a MetaTensor would carry its metadata along)."""
    return torch.as_tensor(values).detach().as_subclass(Tensor).double()


def _linear_part(affine: Tensor) -> Tensor:
    matrix = _plain(affine)
    if matrix.shape not in ((3, 3), (4, 4)):
        raise ValueError(f"affine: shape {tuple(matrix.shape)}, expected (4, 4) or (3, 3)")
    return matrix[:3, :3]


def world_from_fsl(affine: Tensor) -> Tensor:
    """(3, 3) M with v_world = M v_fsl, for an image with `affine` (4, 4): FSL's sign of x, then the grid rotation."""
    rotation = grid_rotation(affine)
    x_sign = -1.0 if torch.linalg.det(rotation) > 0 else 1.0
    return rotation * rotation.new_tensor([x_sign, 1.0, 1.0])
