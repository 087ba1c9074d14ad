"""Rotation invariants of harmonic coefficients."""

from __future__ import annotations

import torch
from torch import Tensor

from dmri_monai.so3 import as_irreps

__all__ = ["power_spectrum"]


def power_spectrum(field: Tensor, irreps: str) -> Tensor:
    """(B, K, X, Y, Z) invariants of `field` (B, C, X, Y, Z) with channels `irreps`, one for each of the K
    irreps.

    0e channels are kept as they are; every other irrep of order l gives its power, sum over m of c_lm².  With
    the orthonormal basis that is the function's energy in order l (Kazhdan 2003,
    doi:10.2312/SGP/SGP03/156-165).
    """
    parsed = as_irreps(irreps)
    if field.shape[1] != parsed.dim:
        raise ValueError(f"field has {field.shape[1]} channels, irreps {irreps} have {parsed.dim}")
    parts = []
    for (mul, irrep), where in zip(parsed, parsed.slices(), strict=True):
        block = field[:, where].unflatten(1, (mul, irrep.dim))
        parts.append(block[:, :, 0] if str(irrep) == "0e" else block.square().sum(2))
    return torch.cat(parts, dim=1)
