"""Local reorientation of diffusion signals under a smooth warp, by preservation of the principal direction.

A warp with Jacobian J moves a fibre along v to J v / |J v|, but a signal can only be rotated.  Per voxel the
rotation is the finite strain part of J, followed by the smallest rotation that takes the fibre where J takes
it (Alexander 2001, doi:10.1109/42.963816).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD, cluster_shells
from dmri_monai.qspace.irreps_rotation import rotate_voxelwise
from dmri_monai.qspace.shell_fit import sh_fit_matrix, supported_order
from dmri_monai.so3 import sh_basis

__all__ = ["finite_strain", "principal_rotation", "push_forward", "reorient_signal"]


def finite_strain(jacobian: Tensor) -> Tensor:
    """(V, 3, 3) rotations nearest to `jacobian` (V, 3, 3), det > 0: the polar factor, by Newton's iteration.

    Higham 1986, doi:10.1137/0907079.  Raises ValueError for a Jacobian that folds.
    """
    worst = float(torch.linalg.det(jacobian).min()) if len(jacobian) else 1.0
    if worst <= 0:
        raise ValueError(f"the warp folds: smallest Jacobian determinant {worst:.3g}, expected above 0")
    rotation = jacobian
    for _ in range(8):  # quadratic convergence: a condition number of 10 needs 7 steps
        rotation = (rotation + _inverse_transpose(rotation)) / 2
    return rotation


def _inverse_transpose(matrix: Tensor) -> Tensor:
    """(V, 3, 3) inverse transposes: cofactors over the determinant, much faster than a batched solver."""
    a, b, c = matrix.unbind(1)
    cofactors = torch.stack(
        [torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], dim=1
    )
    return cofactors / (a * cofactors[:, 0]).sum(1)[:, None, None]


def principal_rotation(jacobian: Tensor, v1: Tensor, fa: Tensor, fa_threshold: float = 0.2) -> Tensor:
    """(V, 3, 3) rotations for fibres `v1` (V, 3) under `jacobian` (V, 3, 3), given their `fa` (V,)."""
    strain = finite_strain(jacobian)
    turned = torch.einsum("vij,vj->vi", strain, v1)
    extra = _smallest_rotation(turned, push_forward(jacobian, v1))
    clear = (fa >= fa_threshold) & (v1.norm(dim=1) > 0.5)
    return torch.where(clear[:, None, None], extra @ strain, strain)


def push_forward(jacobian: Tensor, vectors: Tensor) -> Tensor:
    """(V, 3) directions J v / |J v| with the length of `vectors` (V, 3); zero and NaN stay as they are."""
    moved = torch.einsum("vij,vj->vi", jacobian, vectors)
    length = moved.norm(dim=1, keepdim=True)
    return torch.where(length > 0, moved / length, moved) * vectors.norm(dim=1, keepdim=True)


def _smallest_rotation(a: Tensor, b: Tensor) -> Tensor:
    """(V, 3, 3) rotations taking unit vectors a to b (V, 3), less than 180° apart (Rodrigues)."""
    w, cosine = torch.linalg.cross(a, b), (a * b).sum(1)
    zero = torch.zeros_like(cosine)
    x, y, z = w.unbind(1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)
    identity = torch.eye(3, dtype=a.dtype, device=a.device)
    return identity + skew + skew @ skew / (1 + cosine).clamp(min=1e-6)[:, None, None]


def reorient_signal(
    signal: Tensor,
    bvals: Tensor,
    bvecs: Tensor,
    rotations: Tensor,
    l_max: int = 4,
    b0_threshold: float = B0_THRESHOLD,
) -> Tensor:
    """(N, V) signals turned voxel by voxel: S'(g) = S(R^T g), for `signal` (N, V) and `rotations` (V, 3, 3).

    bvals (N,) s/mm², bvecs (N, 3) unit, in the frame of the rotations.  Each shell is turned through its
    harmonics up to `l_max` (less where it has fewer directions); what they do not describe, noise above all,
    stays in place, so the identity changes nothing.  Raises ValueError for a shell whose directions do not
    determine order 2.
    """
    out = signal.clone()
    for shell in cluster_shells(bvals.detach().cpu(), b0_threshold):
        directions = bvecs.detach().cpu().double()[shell.indices]
        order = supported_order(directions, l_max)
        if order < 2:
            raise ValueError(
                f"shell b = {shell.bval:.0f} has {len(directions)} directions, too few to reorient its signal: "
                "at least 6 well-spread ones are needed"
            )
        rows = shell.indices.to(signal.device)
        fit = sh_fit_matrix(directions, order, smoothing=0.0).to(signal)
        coefficients = fit @ signal.index_select(0, rows)
        change = rotate_voxelwise(coefficients, rotations, order) - coefficients
        out[rows] += sh_basis(directions, order).to(signal) @ change
    return out
