"""The 24 ways to flip and permute the components of b-vectors, up to a common sign, and their names."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

__all__ = ["AXIS_CHANGES", "canonical_sign", "change_code", "describe", "turn_deg"]


def _axis_changes() -> Tensor:
    """(24, 3, 3) signed permutations up to a common sign, the identity first."""
    changes = []
    for order in itertools.permutations(range(3)):
        for signs in ((1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1)):
            changes.append(
                torch.diag(torch.tensor(signs, dtype=torch.float64)) @ torch.eye(3).double()[list(order)]
            )
    return torch.stack(changes)


AXIS_CHANGES = _axis_changes()


def describe(change: Tensor) -> str:
    """Words for a (3, 3) signed permutation of b-vector components; empty for the identity.

    >>> describe(torch.diag(torch.tensor([-1, 1, 1])))
    'flipped in x'
    >>> describe(torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, -1]]))
    'swapped between x and y, flipped in z'
    """
    change = canonical_sign(change)
    order, flipped, moved = _parts(change)
    words = []
    if len(moved) == 2:
        words.append(f"swapped between {moved[0]} and {moved[1]}")
    elif moved:
        words.append("permuted: x y z stand where " + " ".join("xyz"[i] for i in order) + " belong")
    if flipped:
        words.append("flipped in " + " and ".join(flipped))
    return ", ".join(words)


def change_code(change: Tensor) -> str:
    """Stable code of the finding for a (3, 3) signed permutation: flips by axis, swaps by pair, cycles as one.

    >>> change_code(torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, -1]]))
    'bvecs-swapped-xy'
    """
    _, flipped, moved = _parts(canonical_sign(change))
    if len(moved) == 3:
        return "bvecs-permuted"
    return f"bvecs-swapped-{''.join(moved)}" if moved else f"bvecs-flipped-{''.join(flipped)}"


def canonical_sign(change: Tensor) -> Tensor:
    """Of `change` and its negative the one with fewer minus signs: directions have no sign."""
    return -change if int((change < 0).sum()) > 1 else change


def turn_deg(first: Tensor, second: Tensor) -> float:
    """Degrees between two orthogonal (3, 3) matrices as they act on axes, for which v and -v are one."""
    between = first.double() @ second.double().T
    between = between if torch.linalg.det(between) > 0 else -between
    cosine = ((torch.trace(between) - 1) / 2).clamp(-1, 1)
    return float(torch.rad2deg(torch.arccos(cosine)))


def _parts(change: Tensor) -> tuple[list[int], list[str], list[str]]:
    """Order of the components, axes that change sign, and axes that move."""
    order = change.abs().argmax(dim=1).tolist()
    flipped = ["xyz"[i] for i in range(3) if change[i, order[i]] < 0]
    return order, flipped, ["xyz"[i] for i in range(3) if order[i] != i]
