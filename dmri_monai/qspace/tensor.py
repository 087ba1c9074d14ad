"""Diffusion tensors by weighted least squares, batched, on any device; FA, MD, AD, RD and V1.

Tensors are 6 components xx, yy, zz, xy, xz, yz (MRtrix's order) in mm²/s.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmri_monai.gradients import grid_rotation

__all__ = [
    "GAUSSIAN_B_MAX",
    "TensorMetrics",
    "fit_tensor",
    "rotate_tensor",
    "tensor_design",
    "tensor_matrix",
    "tensor_metrics",
    "tensor_to_voxel",
    "tensor_to_world",
]

CPU_CHUNK = 1 << 13  # voxels at a time: the working set stays in the cache
GPU_CHUNK = 1 << 19
# component pairs and their count in a quadratic form, in the order of the six components
TERMS = ((0, 0, 1), (1, 1, 1), (2, 2, 1), (0, 1, 2), (0, 2, 2), (1, 2, 2))
GAUSSIAN_B_MAX = 1600.0  # s/mm²: above it the signal is no longer that of one tensor
B_SCALE = 1000.0  # s/mm²: the unknowns are then of order one


class TensorMetrics(NamedTuple):
    """(B, 1, X, Y, Z) fa in [0, 1] and md, ad, rd in mm²/s; unit v1 (B, 3, X, Y, Z) in the tensor's frame."""

    fa: Tensor
    md: Tensor
    ad: Tensor
    rd: Tensor
    v1: Tensor


def fit_tensor(
    image: Tensor,
    bvals: Tensor,
    bvecs_voxel: Tensor,
    *,
    mask: Tensor | None = None,
    brain: Tensor | None = None,
    min_signal: float = 1e-4,
) -> Tensor:
    """(B, 6, X, Y, Z) tensors in mm²/s, in the frame of the vectors, of raw signals `image` (B, N, X, Y, Z).

    bvals (B, N) s/mm², bvecs_voxel (B, N, 3); mask (B, N) bool: valid rows.  brain (B, 1, X, Y, Z): voxels to
    fit, the others are 0.  min_signal: floor of the signal before the logarithm (DIPY's default).
    Weighted least squares on log S, weights the squared signal predicted by an unweighted fit (Chung 2006,
    doi:10.1016/j.neuroimage.2006.07.001).  ValueError where the table cannot determine a tensor.
    """
    if image.ndim != 5 or bvals.shape != image.shape[:2] or bvecs_voxel.shape != (*image.shape[:2], 3):
        raise ValueError(
            f"image {tuple(image.shape)}, b-values {tuple(bvals.shape)} and b-vectors "
            f"{tuple(bvecs_voxel.shape)} do not agree: expected (B, N, X, Y, Z), (B, N) and (B, N, 3)"
        )
    items = []
    for b in range(len(image)):
        rows = torch.ones_like(bvals[b], dtype=torch.bool) if mask is None else mask[b].bool()
        design = tensor_design(bvals[b][rows], bvecs_voxel[b][rows]).to(image.device)
        signal = image[b] if bool(rows.all()) else image[b][rows.to(image.device)]
        inside = None if brain is None else brain[b].reshape(-1) > 0
        items.append(_fit_item(signal, design, inside, min_signal))
    return torch.stack(items)


def tensor_design(bvals: Tensor, bvecs: Tensor) -> Tensor:
    """(N, 7) float64 design: log S = design @ (D in 1e-3 mm²/s, log S0)."""
    g, b = bvecs.double(), bvals.double() / B_SCALE
    quadratic = [g[:, i] * g[:, j] * f for i, j, f in TERMS]
    design = torch.stack([*(-b * q for q in quadratic), torch.ones_like(b)], dim=1)
    singular = torch.linalg.svdvals(design) if len(design) >= 7 else design.new_zeros(7)
    if singular[-1] <= 1e-3 * singular[0]:
        raise ValueError(
            f"{len(design)} measurements cannot determine a tensor: at least 6 well-spread directions "
            "and a second b-value (or b0) are needed"
        )
    return design


def _fit_item(image: Tensor, design: Tensor, inside: Tensor | None, min_signal: float) -> Tensor:
    flat = image.flatten(1)
    chunk = CPU_CHUNK if flat.device.type == "cpu" else GPU_CHUNK
    index = None if inside is None else torch.nonzero(inside).flatten()
    out = torch.zeros(6, flat.shape[1], device=flat.device)
    solver = _Solver(design)
    for start in range(0, flat.shape[1] if index is None else len(index), chunk):
        where = slice(start, start + chunk) if index is None else index[start : start + chunk]
        out[:, where] = solver(flat[:, where].float().clamp(min=min_signal).log_())
    return out.view(6, *image.shape[1:])


class _Solver:
    """Weighted least squares of one design (N, 7) for any number of voxels."""

    def __init__(self, design: Tensor) -> None:
        rows, cols = torch.triu_indices(7, 7)
        self.ordinary = (design @ torch.linalg.pinv(design)).float()
        self.products = (design[:, rows] * design[:, cols]).T.contiguous().float()
        self.design_t = design.T.contiguous().float()

    def __call__(self, log_signal: Tensor) -> Tensor:
        """(6, V) tensors in mm²/s from (N, V) log signals."""
        predicted = self.ordinary @ log_signal
        # weights relative to each voxel's strongest: the scale cancels, and nothing over- or underflows
        weights = (2 * (predicted - predicted.amax(dim=0))).exp_()
        solution = _solve_symmetric(self.products @ weights, self.design_t @ (weights * log_signal))
        return torch.stack(solution[:6]).float() / B_SCALE


def _solve_symmetric(packed: Tensor, right: Tensor) -> list[Tensor]:
    """Solve A x = b for (28, V) upper triangles of A (7, 7) and (7, V) b, written out over the voxels."""
    a, b = _unpack(packed.double()), list(right.double())
    n = len(b)
    for k in range(n):
        for i in range(k + 1, n):
            factor = a[k][i] / a[k][k]
            for j in range(i, n):
                a[i][j] = a[i][j] - factor * a[k][j]
            b[i] = b[i] - factor * b[k]
    for k in reversed(range(n)):
        for j in range(k + 1, n):
            b[k] = b[k] - a[k][j] * b[j]
        b[k] = b[k] / a[k][k]
    return [x.nan_to_num(0.0, 0.0, 0.0) for x in b]


def _unpack(packed: Tensor) -> list[list[Tensor]]:
    a: list[list[Tensor]] = [[packed[0]] * 7 for _ in range(7)]
    for value, (i, j) in zip(packed, torch.triu_indices(7, 7).T.tolist(), strict=True):
        a[i][j] = value
    return a


def tensor_matrix(tensor: Tensor) -> Tensor:
    """(B, X, Y, Z, 3, 3) symmetric matrices of tensors (B, 6, X, Y, Z)."""
    xx, yy, zz, xy, xz, yz = tensor.unbind(1)
    return torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], dim=-1).unflatten(-1, (3, 3))


def rotate_tensor(tensor: Tensor, rotation: Tensor) -> Tensor:
    """R D R^T of tensors (B, 6, X, Y, Z) by one `rotation` (3, 3), or one per item (B, 3, 3)."""
    r = rotation.to(tensor)
    r = r if r.ndim == 2 else r[:, None, None, None]
    matrix = r @ tensor_matrix(tensor) @ r.transpose(-1, -2)
    return torch.stack([matrix[..., i, j] for i, j, _ in TERMS], dim=1)


def tensor_to_world(tensor: Tensor, affine: Tensor) -> Tensor:
    """Tensors (B, 6, X, Y, Z) from the voxel frame of `affine` (4, 4) or (B, 4, 4) into the world frame."""
    return rotate_tensor(tensor, _rotations(affine))


def tensor_to_voxel(tensor: Tensor, affine: Tensor) -> Tensor:
    """Tensors (B, 6, X, Y, Z) from the world frame into the voxel frame of `affine` (4, 4) or (B, 4, 4)."""
    return rotate_tensor(tensor, _rotations(affine).transpose(-1, -2))


def _rotations(affine: Tensor) -> Tensor:
    return grid_rotation(affine) if affine.ndim == 2 else torch.stack([grid_rotation(a) for a in affine])


def tensor_metrics(tensor: Tensor) -> TensorMetrics:
    """FA, MD, AD, RD and V1 of tensors (B, 6, X, Y, Z); negative eigenvalues count as 0.

    Closed-form eigenvalues of a symmetric 3 x 3 matrix (Smith 1961, doi:10.1145/355578.366316); float64
    inside.  V1 is 0 for a zero tensor.
    """
    chunk = CPU_CHUNK if tensor.device.type == "cpu" else GPU_CHUNK
    flat = tensor.transpose(0, 1).flatten(1)
    parts = [torch.cat(_metrics(flat[:, s : s + chunk].double())) for s in range(0, flat.shape[1], chunk)]
    out = (
        torch.cat(parts, dim=1)
        .to(tensor.dtype)
        .unflatten(1, (len(tensor), *tensor.shape[2:]))
        .transpose(0, 1)
    )
    return TensorMetrics(out[:, 0:1], out[:, 1:2], out[:, 2:3], out[:, 3:4], out[:, 4:7])


def _metrics(flat: Tensor) -> list[Tensor]:
    l1, l2, l3 = eigenvalues(flat)
    v1 = _first_eigenvector(flat, l2, l3)
    l1, l2, l3 = (value.clamp(min=0) for value in (l1, l2, l3))
    md = (l1 + l2 + l3) / 3
    spread = ((l1 - md) ** 2 + (l2 - md) ** 2 + (l3 - md) ** 2) * 1.5
    power = l1**2 + l2**2 + l3**2
    fa = torch.where(power > 0, spread / power.clamp(min=1e-30), 0.0).sqrt().clamp(max=1.0)
    return [torch.stack([fa, md, l1, (l2 + l3) / 2]), v1]


def eigenvalues(flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues, descending, of symmetric tensors (6, V)."""
    xx, yy, zz, xy, xz, yz = flat
    mean = (xx + yy + zz) / 3
    a, b, c = xx - mean, yy - mean, zz - mean
    scale = ((a * a + b * b + c * c + 2 * (xy * xy + xz * xz + yz * yz)) / 6).sqrt()
    determinant = a * (b * c - yz * yz) - xy * (xy * c - yz * xz) + xz * (xy * yz - b * xz)
    angle = (determinant / (2 * scale**3).clamp(min=1e-60)).clamp(-1, 1).acos() / 3
    l1, l3 = mean + 2 * scale * angle.cos(), mean + 2 * scale * (angle + 2 * torch.pi / 3).cos()
    return l1, 3 * mean - l1 - l3, l3


def _first_eigenvector(flat: Tensor, l2: Tensor, l3: Tensor) -> Tensor:
    """(3, V) unit V1: the longest column of (D - l2)(D - l3), the first eigenspace; 0 for D = 0."""
    xx, yy, zz, xy, xz, yz = flat
    ax, ay, az, bx, by, bz = xx - l2, yy - l2, zz - l2, xx - l3, yy - l3, zz - l3
    columns = torch.stack(
        [
            torch.stack(
                [ax * bx + xy * xy + xz * xz, xy * bx + ay * xy + yz * xz, xz * bx + yz * xy + az * xz]
            ),
            torch.stack(
                [ax * xy + xy * by + xz * yz, xy * xy + ay * by + yz * yz, xz * xy + yz * by + az * yz]
            ),
            torch.stack(
                [ax * xz + xy * yz + xz * bz, xy * xz + ay * yz + yz * bz, xz * xz + yz * yz + az * bz]
            ),
        ]
    )
    norms = columns.norm(dim=1)
    length, longest = norms.max(dim=0)
    chosen = columns.gather(0, longest.expand(1, 3, -1)).squeeze(0)
    return torch.where(length > 0, chosen / length.clamp(min=1e-60), 0.0)
