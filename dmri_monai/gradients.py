"""Gradient tables and the frames their directions live in.

Three frames exist. *World* is RAS+ scanner space in millimetres: the frame b-vectors are stored in. *Voxel* is the
frame of the image's array axes: what a kernel or a fit on the array sees. *FSL* is the voxel frame with x mirrored on
right-handed grids: what `.bvec` files hold (BIDS specification; MRtrix3 `core/dwi/gradient.cpp`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GradientTable", "Shell", "cluster_shells", "grid_rotation", "q_vectors"]

B0_THRESHOLD = 50.0
NORM_TOLERANCE = 0.05


def grid_rotation(affine: Tensor) -> Tensor:
    """(3, 3) orthogonal polar factor Q of `affine` (4, 4) or (3, 3), float64; det -1 on a left-handed grid.

    v_world = Q v_voxel.  Raises ValueError when the grid axes are not finite or not independent.
    """
    linear = torch.as_tensor(affine)[:3, :3].double()
    if not linear.isfinite().all():
        raise ValueError(f"affine is not finite: {linear.tolist()}")
    u, singular, vh = torch.linalg.svd(linear)
    if singular[-1] <= 1e-6 * singular[0]:
        raise ValueError(f"affine is singular: smallest axis scale {singular[-1]:.3g}, largest {singular[0]:.3g}")
    return u @ vh


def q_vectors(bvals: Tensor, bvecs_voxel: Tensor, b_max: float) -> Tensor:
    """(..., N, 3) q-vectors sqrt(b / b_max) g in the frame of `bvecs_voxel` (..., N, 3); bvals (..., N) in s/mm².

    `b_max` (s/mm²) is a constant of the model, never the scan's maximum: scans at b = 1000 and b = 3000 would
    otherwise look the same.
    """
    if not b_max > 0:
        raise ValueError(f"b_max must be positive, got {b_max}")
    return (bvals.clamp(min=0) / b_max).sqrt().unsqueeze(-1) * bvecs_voxel


@dataclass(frozen=True)
class Shell:
    """Measurements of one b-value: nominal `bval` (mean, s/mm²) and their `indices` (M,) in the table."""

    bval: float
    indices: Tensor


def cluster_shells(bvals: Tensor, b0_threshold: float = B0_THRESHOLD) -> tuple[Shell, ...]:
    """Shells of (N,) b-values above `b0_threshold`, ascending.

    Neighbours on the sorted b-axis belong together while they lie within 5 % or 50 s/mm² (the larger) of the running
    mean of the shell, so scanner jitter does not split it.
    """
    order = torch.argsort(bvals, stable=True)
    order = order[bvals[order] > b0_threshold]
    groups: list[list[int]] = []
    mean = 0.0
    for index in order.tolist():
        value = float(bvals[index])
        # twice the jitter: the lowest and the highest member of one shell are two jitters apart
        if groups and value - float(bvals[groups[-1][0]]) <= 2 * max(50.0, 0.05 * mean):
            groups[-1].append(index)
            mean += (value - mean) / len(groups[-1])
        else:
            groups.append([index])
            mean = value
    return tuple(Shell(float(bvals[sorted(g)].mean()), torch.tensor(sorted(g))) for g in groups)


@dataclass(frozen=True)
class GradientTable:
    """b-values (N,) in s/mm² and unit b-vectors (N, 3) in the world frame (RAS+), zero for b0; float64.

    b0 volumes are those with bval <= `b0_threshold`; their vectors are set to zero, whatever the file says.
    Vectors within 5 % of unit length are normalised; anything else raises ValueError naming the entry.

    >>> table = GradientTable(torch.tensor([0.0, 1000.0]), torch.tensor([[0.0, 0, 0], [0, 0, 1]]))
    >>> table.b0_mask.tolist(), [round(s.bval) for s in table.shells()]
    ([True, False], [1000])
    """

    bvals: Tensor
    bvecs: Tensor
    b0_threshold: float = B0_THRESHOLD

    def __post_init__(self) -> None:
        bvals = torch.as_tensor(self.bvals).detach().double()
        bvecs = torch.as_tensor(self.bvecs).detach().double()
        if bvals.ndim != 1:
            raise ValueError(f"b-values: shape {tuple(bvals.shape)}, expected (N,)")
        if bvecs.shape != (len(bvals), 3):
            raise ValueError(f"b-vectors: shape {tuple(bvecs.shape)} for {len(bvals)} b-values, expected (N, 3)")
        _check_bvals(bvals)
        # adding zero turns -0.0 into 0.0: files then compare equal
        object.__setattr__(self, "bvals", bvals.clone() + 0.0)
        object.__setattr__(self, "bvecs", _unit_or_zero(bvals, bvecs, self.b0_threshold) + 0.0)

    def __len__(self) -> int:
        return len(self.bvals)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GradientTable):
            return NotImplemented
        same = torch.equal(self.bvals, other.bvals) and torch.equal(self.bvecs, other.bvecs)
        return same and self.b0_threshold == other.b0_threshold

    def __hash__(self) -> int:
        return hash((tuple(self.bvals.tolist()), tuple(self.bvecs.flatten().tolist()), self.b0_threshold))

    @classmethod
    def from_fsl(
        cls, bvals: Tensor, bvecs_fsl: Tensor, affine: Tensor, b0_threshold: float = B0_THRESHOLD
    ) -> GradientTable:
        """Table from FSL/BIDS vectors (N, 3) of an image with `affine` (4, 4)."""
        bvecs = torch.as_tensor(bvecs_fsl).double()
        if bvecs.ndim != 2 or bvecs.shape[1] != 3:
            raise ValueError(f"b-vectors: shape {tuple(bvecs.shape)}, expected (N, 3)")
        return cls(bvals, (bvecs * _fsl_signs(affine)) @ grid_rotation(affine).T, b0_threshold)

    def to_fsl(self, affine: Tensor) -> Tensor:
        """(N, 3) b-vectors as a `.bvec` file of an image with `affine` (4, 4) holds them."""
        return self.in_voxel_frame(affine) * _fsl_signs(affine) + 0.0

    def in_voxel_frame(self, affine: Tensor) -> Tensor:
        """(N, 3) unit b-vectors in the voxel frame of `affine` (4, 4).  v_voxel = Q^T v_world, Q = polar(A)."""
        return self.bvecs @ grid_rotation(affine).to(self.bvecs.device)

    def q_vectors(self, affine: Tensor, b_max: float) -> Tensor:
        """(N, 3) q-vectors sqrt(b / b_max) g in the voxel frame of `affine`; see :func:`q_vectors`."""
        return q_vectors(self.bvals, self.in_voxel_frame(affine), b_max)

    @property
    def b0_mask(self) -> Tensor:
        """(N,) bool: volumes with bval <= b0_threshold."""
        return self.bvals <= self.b0_threshold

    def shells(self) -> tuple[Shell, ...]:
        """Shells above the b0 threshold, ascending; see :func:`cluster_shells`."""
        return cluster_shells(self.bvals, self.b0_threshold)

    def select(self, mask: Tensor) -> GradientTable:
        """New table of the volumes in `mask`: (N,) bool, or (M,) integer indices in the wanted order."""
        mask = torch.as_tensor(mask)
        if mask.dtype == torch.bool and mask.shape != self.bvals.shape:
            raise ValueError(f"mask has {tuple(mask.shape)} entries for {len(self)} volumes")
        return GradientTable(self.bvals[mask], self.bvecs[mask], self.b0_threshold)


def _fsl_signs(affine: Tensor) -> Tensor:
    linear = torch.as_tensor(affine)[:3, :3].double()
    return torch.tensor([-1.0 if torch.linalg.det(linear) > 0 else 1.0, 1.0, 1.0], dtype=torch.float64)


def _check_bvals(bvals: Tensor) -> None:
    for i in torch.nonzero(~bvals.isfinite()).flatten().tolist():
        raise ValueError(f"b-value {i} is {bvals[i]}, expected a finite number")
    for i in torch.nonzero(bvals < 0).flatten().tolist():
        raise ValueError(f"b-value {i} is {bvals[i]:g}, expected at least 0")


def _unit_or_zero(bvals: Tensor, bvecs: Tensor, b0_threshold: float) -> Tensor:
    weighted = bvals > b0_threshold
    for i in torch.nonzero(~bvecs.isfinite().all(dim=1)).flatten().tolist():
        raise ValueError(f"b-vector {i} is {bvecs[i].tolist()}, expected finite numbers")
    norms = bvecs.norm(dim=1)
    for i in torch.nonzero(weighted & ((norms - 1).abs() > NORM_TOLERANCE)).flatten().tolist():
        raise ValueError(_norm_message(i, bvals, norms))
    scale = torch.where(weighted, norms, torch.ones_like(norms))
    return torch.where(weighted.unsqueeze(1), bvecs / scale.unsqueeze(1), torch.zeros_like(bvecs))


def _norm_message(i: int, bvals: Tensor, norms: Tensor) -> str:
    message = f"b-vector {i} has length {norms[i]:.3f}, expected 1 +- {NORM_TOLERANCE} (b = {bvals[i]:g})"
    root = float((bvals[i] / bvals.max()).sqrt())
    if bvals[i] < bvals.max() and abs(float(norms[i]) - root) <= NORM_TOLERANCE * root:
        message += f"; sqrt(b/b_max) = {root:.3f}: the shell seems to be encoded in the vector length"
    return message
