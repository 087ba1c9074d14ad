"""Checks of the q-vectors, masks and weights that `PQConv3d` is called with."""

from __future__ import annotations

import torch
from torch import Tensor

from dmri_monai.equivariant.finite_values import is_recording

__all__ = ["check_mask", "check_weights", "checked_q"]

LONGEST_Q = 4.0  # |q| is about 1 at the model's b_max; far above, the vectors were not divided by it


def check_weights(weights: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless quadrature weights are (Q,) or (N, Q), finite and not negative."""
    if weights.shape not in (shape, shape[1:]):
        raise ValueError(f"weights_in {tuple(weights.shape)} must be {tuple(shape[1:])} or {tuple(shape)}")
    if is_recording():
        return
    bad = int((~(weights.isfinite() & (weights >= 0))).sum())
    if bad:
        raise ValueError(f"weights_in: {bad} of {weights.numel()} are negative or not finite")


def checked_q(
    q: Tensor | None, mask: Tensor | None, name: str, batch: int, samples: int | None, has: bool
) -> Tensor | None:
    """q-vectors (Q, 3) or (N, Q, 3) after the checks; one table for all is (Q, 3), masked rows are zero."""
    if not has:
        if q is not None or mask is not None:
            raise ValueError(
                f"{name}: this layer has no q-space on that side, pass neither vectors nor a mask"
            )
        return None
    if q is None:
        raise ValueError(f"{name}: q-vectors (Q, 3) or (N, Q, 3) are needed, got None")
    if q.ndim not in (2, 3) or q.shape[-1] != 3:
        raise ValueError(f"{name} has shape {tuple(q.shape)}, expected (Q, 3) or (N, Q, 3)")
    if q.shape[-2] == 0:
        raise ValueError(f"{name} has 0 q-vectors, at least 1 is needed")
    if q.ndim == 3 and q.shape[0] == 1:
        q = q[0]
    if q.ndim == 3 and q.shape[0] != batch:
        raise ValueError(f"{name} has {q.shape[0]} tables for a batch of {batch}")
    if samples is not None and q.shape[-2] != samples:
        raise ValueError(f"{name} has {q.shape[-2]} vectors for {samples} samples of the input")
    q = q if mask is None else _without_masked(q, mask, name, batch)
    if not is_recording():
        _check_values(q, name)
    return q


def check_mask(mask: Tensor, shape: tuple[int, int], name: str) -> None:
    """Raise unless `mask` is a bool tensor (N, Q) of `shape`."""
    if mask.shape != shape:
        raise ValueError(f"{name} is {tuple(mask.shape)}, expected {shape}")
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {mask.dtype}")


def _without_masked(q: Tensor, mask: Tensor, name: str, batch: int) -> Tensor:
    check_mask(mask, (batch, q.shape[-2]), f"mask of {name}")
    return torch.where(mask.unsqueeze(-1), q, 0.0)


def _check_values(q: Tensor, name: str) -> None:
    bad = int((~q.isfinite()).any(-1).sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {q.shape[:-1].numel()} q-vectors are not finite")
    longest = float(q.norm(dim=-1).max()) if q.numel() else 0.0
    if longest > LONGEST_Q:
        raise ValueError(f"{name}: longest q-vector {longest:.3g}, expected about 1: pass sqrt(b / b_max) g")
