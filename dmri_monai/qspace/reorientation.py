"""Local reorientation of diffusion signals under a smooth warp, by preservation of the principal direction.

A warp with Jacobian J moves a fibre along v to J v / |J v|, but a signal can only be rotated.  Per voxel the
rotation is the finite strain part of J, followed by the smallest rotation that takes the fibre where J takes
it (Alexander 2001, doi:10.1109/42.963816).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD, Shell, cluster_shells
from dmri_monai.qspace.irreps_rotation import rotate_voxelwise
from dmri_monai.qspace.shell_fit import sh_fit_matrix, supported_order
from dmri_monai.so3 import sh_basis

__all__ = ["finite_strain", "inverse", "principal_rotation", "push_forward", "reorient_signal"]

CPU_CHUNK = 1 << 13  # voxels at a time: the working set stays in the cache
CONVERGED = 1.0  # step of Newton's iteration, in roots of the precision: its square is rounding


def finite_strain(jacobian: Tensor) -> Tensor:
    """(V, 3, 3) rotations nearest to `jacobian` (V, 3, 3), det > 0: the polar factor, by Newton's iteration.

    Higham 1986, doi:10.1137/0907079.  Raises ValueError for a Jacobian that folds.
    """
    return _by_chunks(_polar, jacobian)


def principal_rotation(jacobian: Tensor, v1: Tensor, fa: Tensor, fa_threshold: float = 0.2) -> Tensor:
    """(V, 3, 3) rotations for fibres `v1` (V, 3) under `jacobian` (V, 3, 3), given their `fa` (V,)."""
    clear = (fa >= fa_threshold) & (v1.norm(dim=1) > 0.5)
    return _by_chunks(_turn_of_fibre, jacobian, v1, clear)


def push_forward(jacobian: Tensor, vectors: Tensor) -> Tensor:
    """(V, 3) directions J v / |J v| with the length of `vectors` (V, 3); zero and NaN stay as they are."""
    moved = torch.einsum("vij,vj->vi", jacobian, vectors)
    length = moved.norm(dim=1, keepdim=True)
    return torch.where(length > 0, moved / length, moved) * vectors.norm(dim=1, keepdim=True)


def inverse(matrices: Tensor) -> Tensor:
    """(V, 3, 3) inverses of `matrices` (V, 3, 3): cofactors over the determinant, much faster than a batched solver."""
    return _by_chunks(lambda m: _inverse_transpose(m).transpose(0, 1), matrices)


# What follows holds components first, (3, 3, V) and (3, V), in chunks of voxels that stay in the cache.


def _by_chunks(function: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
    """`function` of (3, ..., V) arrays applied to (V, ...) arrays; it returns (3, 3, V), this (V, 3, 3)."""
    chunk = CPU_CHUNK if arrays[0].device.type == "cpu" else max(1, len(arrays[0]))
    out = torch.empty_like(arrays[0])
    for start in range(0, len(out), chunk):
        part = slice(start, start + chunk)
        out[part] = function(*(a[part].movedim(0, -1).contiguous() for a in arrays)).movedim(-1, 0)
    return out


def _cofactors(m: Tensor) -> Tensor:
    """(3, 3, V) cofactors, rows being cross products of the rows."""
    a, b, c = m
    return torch.stack([torch.linalg.cross(x, y, dim=0) for x, y in ((b, c), (c, a), (a, b))])


def _inverse_transpose(m: Tensor) -> Tensor:
    cofactors = _cofactors(m)
    return cofactors / (m[0] * cofactors[0]).sum(0)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """(3, 3, V) @ (3, ..., V)."""
    return torch.stack([row[0] * b[0] + row[1] * b[1] + row[2] * b[2] for row in a])


def _polar(jacobian: Tensor) -> Tensor:
    worst = float((jacobian[0] * _cofactors(jacobian)[0]).sum(0).min())
    if worst <= 0:
        raise ValueError(f"the warp folds: smallest Jacobian determinant {worst:.3g}, expected above 0")
    rotation = jacobian
    for _ in range(8):  # quadratic convergence: a condition number of 10 needs 7 steps
        step = (_inverse_transpose(rotation) - rotation) / 2
        rotation = rotation + step
        if float(step.abs().max()) < CONVERGED * torch.finfo(step.dtype).eps ** 0.5:
            break  # the next step would be of the order of its square
    return rotation


def _turn_of_fibre(jacobian: Tensor, v1: Tensor, clear: Tensor) -> Tensor:
    """The rotation of finite strain, then for voxels that are `clear` (V,) the smallest onto the pushed fibre."""
    strain = _polar(jacobian)
    turned, pushed = _times(strain, v1), _times(jacobian, v1)
    length, wanted = pushed.norm(dim=0), v1.norm(dim=0)
    pushed = torch.where(length > 0, pushed / length, pushed) * wanted
    return torch.where(clear, _times(_smallest_rotation(turned, pushed), strain), strain)


def _smallest_rotation(a: Tensor, b: Tensor) -> Tensor:
    """(3, 3, V) rotations taking unit vectors a to b (3, V), less than 180° apart (Rodrigues)."""
    w, cosine = torch.linalg.cross(a, b, dim=0), (a * b).sum(0)
    x, y, z = w
    share = 1 / (1 + cosine).clamp(min=1e-6)
    outer = w.unsqueeze(1) * (w * share)  # skew² = w w^T - |w|² identity
    diagonal = 1 - (w * w).sum(0) * share
    rows = [
        torch.stack([outer[0, 0] + diagonal, outer[0, 1] - z, outer[0, 2] + y]),
        torch.stack([outer[1, 0] + z, outer[1, 1] + diagonal, outer[1, 2] - x]),
        torch.stack([outer[2, 0] - y, outer[2, 1] + x, outer[2, 2] + diagonal]),
    ]
    return torch.stack(rows)


def reorient_signal(
    signal: Tensor,
    bvals: Tensor,
    bvecs: Tensor,
    rotations: Tensor,
    l_max: int = 4,
    b0_threshold: float = B0_THRESHOLD,
    voxels: Tensor | None = None,
) -> Tensor:
    """(N, V) signals turned voxel by voxel: S'(g) = S(R^T g), for `signal` (N, V) and `rotations` (V, 3, 3).

    bvals (N,) s/mm², bvecs (N, 3) unit, in the frame of the rotations.  Each shell is turned through its
    harmonics up to `l_max` (less where it has fewer directions); what they do not describe, noise above all,
    stays in place, so the identity changes nothing.  voxels (K,): indices of those to turn, with `rotations`
    (K, 3, 3); the others keep their signal.  Raises ValueError for a shell whose directions do not determine order 2.
    """
    out = signal.clone()
    turns = [
        _ShellTurn(shell, bvecs, l_max, signal)
        for shell in cluster_shells(bvals.detach().cpu(), b0_threshold)
    ]
    count = signal.shape[1] if voxels is None else len(voxels)
    chunk = CPU_CHUNK if signal.device.type == "cpu" else max(1, count)
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        where = slice(start, stop) if voxels is None else voxels[start:stop]
        part = out[:, where]  # of a slice a view, of indices a copy
        for turn in turns:
            part.index_add_(0, turn.rows, turn.change(part, rotations[start:stop]))
        if voxels is not None:
            out[:, where] = part
    return out


class _ShellTurn:
    """How the measurements of one shell change under rotations."""

    def __init__(self, shell: Shell, bvecs: Tensor, l_max: int, signal: Tensor) -> None:
        directions = bvecs.detach().cpu().double()[shell.indices]
        self.degree = supported_order(directions, l_max)
        if self.degree < 2:
            raise ValueError(
                f"shell b = {shell.bval:.0f} has {len(directions)} directions, too few to reorient its signal: "
                "at least 6 well-spread ones are needed"
            )
        self.rows = shell.indices.to(signal.device)
        self.fit = sh_fit_matrix(directions, self.degree, smoothing=0.0).to(signal)
        self.basis = sh_basis(directions, self.degree).to(signal)

    def change(self, signal: Tensor, rotations: Tensor) -> Tensor:
        """(rows, V) what a turn by `rotations` (V, 3, 3) adds to `signal` (N, V)."""
        coefficients = self.fit @ signal.index_select(0, self.rows)
        return self.basis @ (rotate_voxelwise(coefficients, rotations, self.degree) - coefficients)
