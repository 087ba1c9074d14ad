"""Gradient samples as `PQSegmentationNet` takes them in: one mean b0 first, then every diffusion-weighted volume."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmri_monai.equivariant.finite_values import is_recording
from dmri_monai.gradients import q_vectors

__all__ = ["Samples", "combine_b0", "spread_subset"]

B_TOLERANCE = 1.1  # scanners' b-values scatter around the nominal one
SAME_DISTANCE = 1e-3  # q-distances closer than this count as equal, and the earlier sample is taken


class Samples(NamedTuple):
    """`signal` (B, Q, X, Y, Z), `q` (B, Q, 3) sqrt(b / b_max) g in the voxel frame, `valid` (B, Q)."""

    signal: Tensor
    q: Tensor
    valid: Tensor


def combine_b0(
    image: Tensor,
    bvals: Tensor,
    bvecs_voxel: Tensor,
    mask: Tensor | None = None,
    *,
    b_max: float,
    b0_threshold: float,
) -> Samples:
    """The mean of each item's b0 volumes at q = 0, then its other volumes at sqrt(b / b_max) g.

    image (B, N, X, Y, Z), bvals (B, N) s/mm², bvecs_voxel (B, N, 3) unit or zero, mask (B, N) bool: valid volumes; a
    leading size of 1 broadcasts over the batch.  An item without b0 has an invalid first sample.  Volumes valid in no
    item are dropped.
    """
    bvals, bvecs, valid = _checked(image, bvals, bvecs_voxel, mask)
    b0 = valid & (bvals <= b0_threshold)
    weighted = valid & ~b0
    _check_values(bvals, bvecs, weighted, b_max)
    rows = _rows_in_use(b0)
    references = torch.where(b0[:, rows, None, None, None], image[:, rows], 0.0)
    reference = references.sum(1, keepdim=True) / b0.sum(1).clamp(min=1).view(-1, 1, 1, 1, 1)
    rows = _rows_in_use(weighted)
    q = q_vectors(bvals[:, rows], bvecs[:, rows], b_max)
    q = torch.where(weighted[:, rows, None], q, 0.0)
    return Samples(
        torch.cat([reference, image[:, rows]], dim=1),
        torch.cat([q.new_zeros(len(q), 1, 3), q], dim=1),
        torch.cat([b0.any(1, keepdim=True), weighted[:, rows]], dim=1),
    )


def spread_subset(q: Tensor, valid: Tensor, count: int) -> Tensor:
    """(B, count) indices of samples spread over q-space, of `q` (B, Q, 3) and `valid` (B, Q); count <= Q.

    Farthest-point sampling from the first valid one, ±q being the same point: it depends on distances only, so that it
    turns with the directions. Where fewer than `count` samples are valid, invalid ones follow.
    """
    chosen = [valid.to(torch.uint8).argmax(1)]
    nearest = torch.full_like(q[..., 0], torch.inf)
    for _ in range(count - 1):
        last = torch.gather(q, 1, chosen[-1].view(-1, 1, 1).expand(-1, 1, 3))
        distance = torch.minimum((q - last).norm(dim=-1), (q + last).norm(dim=-1))
        nearest = torch.minimum(nearest, distance).scatter(1, chosen[-1].unsqueeze(1), -2.0)
        rank = torch.where(valid, nearest, nearest.clamp(max=-1.0))  # chosen: -2, invalid: -1
        best = rank.amax(1, keepdim=True)
        chosen.append((rank >= best - SAME_DISTANCE).to(torch.uint8).argmax(1))
    return torch.stack(chosen, dim=1)


def _checked(
    image: Tensor, bvals: Tensor, bvecs: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Table and mask of the batch, (B, N), (B, N, 3), (B, N); ValueError with both shapes where they do not fit."""
    if image.ndim != 5:
        raise ValueError(f"image has {image.ndim} axes, expected 5 (B, N, X, Y, Z)")
    batch, volumes = image.shape[:2]
    mask = torch.ones_like(bvals, dtype=torch.bool) if mask is None else mask
    if mask.dtype != torch.bool:
        raise TypeError(f"mask of the volumes must be bool, got {mask.dtype}")
    expected = {"bvals": (volumes,), "bvecs_voxel": (volumes, 3), "mask": (volumes,)}
    for (name, shape), value in zip(expected.items(), (bvals, bvecs, mask), strict=True):
        if value.shape not in ((1, *shape), (batch, *shape)):
            raise ValueError(
                f"{name} is {tuple(value.shape)}, expected {(batch, *shape)} for {volumes} volumes"
            )
    return bvals.expand(batch, -1), bvecs.expand(batch, -1, -1), mask.expand(batch, -1)


def _check_values(bvals: Tensor, bvecs: Tensor, weighted: Tensor, b_max: float) -> None:
    if is_recording():
        return
    length = bvecs.norm(dim=-1)
    bad = (weighted & ~((length - 1).abs() <= 0.05)).nonzero()
    if len(bad):
        item, row = bad[0].tolist()
        raise ValueError(
            f"item {item}: b-vector {row} has length {length[item, row]:.3f}, expected 1 +- 0.05 above the b0 threshold"
        )
    highest = float(torch.where(weighted, bvals, 0.0).max())
    if highest > B_TOLERANCE * b_max:
        raise ValueError(f"b-value {highest:.0f} lies above the model's b_max {b_max:.0f}")


def _rows_in_use(used: Tensor) -> Tensor | slice:
    """Which of the N volumes any item uses; all of them where values cannot be looked at."""
    return slice(None) if is_recording() else used.any(0).nonzero().flatten()
