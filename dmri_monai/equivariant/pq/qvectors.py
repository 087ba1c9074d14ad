"""q-vectors: the checks of tables, masks and weights, and functions of pairs of gradient directions.

The functions are averaged over the signs of the b-vectors where those carry no meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from dmri_monai.equivariant.finite_values import is_recording
from dmri_monai.so3 import spherical_harmonics

__all__ = ["check_mask", "check_weights", "checked_q", "direction_functions", "joint_functions"]

LONGEST_Q = 4.0  # |q| is about 1 at the model's b_max; far above, the vectors were not divided by it
NO_DIRECTION = 1e-4  # relative to unit vectors; rounding in float32 stays three orders below


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
    if q.device.type == "cpu" and not is_recording():  # elsewhere every layer would wait for the device
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


def _directions(q: Tensor, unit: bool) -> Tensor:
    if not unit:
        return q
    length = q.norm(dim=-1, keepdim=True)
    return torch.where(length > NO_DIRECTION, q / length.clamp(min=NO_DIRECTION), torch.zeros_like(q))


def _difference(q_out: Tensor | None, q_in: Tensor | None, signs: tuple[int, int], unit: bool) -> Tensor:
    """(..., Q_out, Q_in, 3) signed direction differences; without one side, the other's direction."""
    if q_in is None:
        assert q_out is not None, "without q-space there are no directions"
        return signs[0] * _directions(q_out, unit).unsqueeze(-2)
    inward = signs[1] * _directions(q_in, unit).unsqueeze(-3)
    return inward if q_out is None else signs[0] * _directions(q_out, unit).unsqueeze(-2) - inward


def _signs(q_out: Tensor | None, q_in: Tensor | None, antipodal: bool) -> list[tuple[int, int]]:
    """The signs to average over; a side without q-space has none."""
    if not antipodal:
        return [(1, 1)]
    return list(product((1,) if q_out is None else (1, -1), (1,) if q_in is None else (1, -1)))


def _harmonics(
    v: Tensor, l_max: int, couplings: Sequence[Tensor], mask_zero: bool
) -> tuple[list[Tensor], Tensor]:
    """Y_0..Y_lmax of `v` (..., 3) and (...) 1.0 where v has no direction; `mask_zero` sets Y to 0 there."""
    zero = v.norm(dim=-1, keepdim=True) <= NO_DIRECTION
    harmonics = spherical_harmonics(torch.where(zero, torch.zeros_like(v), v), l_max, couplings[:l_max])
    if mask_zero:
        harmonics = [torch.where(zero, torch.zeros_like(y), y) for y in harmonics]
    return harmonics, zero.squeeze(-1).to(v.dtype)


def _averaged(parts: list[tuple[list[Tensor], Tensor]]) -> tuple[list[Tensor], Tensor]:
    share = 1.0 / len(parts)
    harmonics = [
        torch.stack(same_degree).sum(0) * share for same_degree in zip(*(h for h, _ in parts), strict=True)
    ]
    return harmonics, torch.stack([zero for _, zero in parts]).sum(0) * share


def direction_functions(
    q_out: Tensor | None,
    q_in: Tensor | None,
    couplings: Sequence[Tensor],
    *,
    l_max: int,
    unit: bool,
    antipodal: bool,
    mask_zero: bool,
) -> tuple[list[Tensor], Tensor]:
    """Y_l(dq) for l = 0..l_max, each (..., Q_out, Q_in, 2l+1), and where dq = 0, (..., Q_out, Q_in).

    antipodal: the mean over the signs of all b-vectors, in which odd degrees vanish.
    """
    signs = _signs(q_out, q_in, antipodal)
    return _averaged(
        [_harmonics(_difference(q_out, q_in, s, unit), l_max, couplings, mask_zero) for s in signs]
    )


def joint_functions(
    q_out: Tensor | None,
    q_in: Tensor | None,
    offsets: Tensor,
    couplings: Sequence[Tensor],
    *,
    l_max: int,
    unit: bool,
    antipodal: bool,
    mask_zero: bool,
    mirrored: bool,
) -> tuple[list[Tensor], Tensor]:
    """Y_l(p - dq) for all `offsets` p (P, 3), each (..., Q_out, P, Q_in, 2l+1), and where p = dq.

    On a grid that lists -p in the reverse order of p, the mean over all signs needs half of them, because
    Y_l(p + dq) = (-1)^l Y_l(-p - dq).
    """
    p = offsets.unsqueeze(-2)
    signs = _signs(q_out, q_in, antipodal)
    halved = len(signs) > 1 and mirrored

    def difference(sign: tuple[int, int]) -> Tensor:
        alone = q_out is None and q_in is None
        return p.new_zeros(1, 1, 3) if alone else _difference(q_out, q_in, sign, unit)

    parts = [
        _harmonics(p - difference(s).unsqueeze(-3), l_max, couplings, mask_zero)
        for s in (signs[: len(signs) // 2] if halved else signs)
    ]
    harmonics, zero = _averaged(parts)
    if halved:
        harmonics = [(y + (-1) ** degree * y.flip(-3)) / 2 for degree, y in enumerate(harmonics)]
        zero = (zero + zero.flip(-2)) / 2
    return harmonics, zero
