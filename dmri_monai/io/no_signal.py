"""Scans that hold no signal: nothing may be learnt from them or read into them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

__all__ = ["require_signal"]

NEGATIVE_SHARE = 0.5  # of the voxels that are not 0; interpolation leaves far fewer below 0


def require_signal(image: Tensor, bvals: Tensor, path: str | Path | None = None) -> None:
    """ValueError naming `path` where the raw signal `image` (N, X, Y, Z) is all 0, constant, or negated.

    bvals: (N,) in s/mm²; the volumes of the lowest b-value, which must be the brightest, decide on the sign.
    """
    values = image.detach().as_subclass(Tensor)
    place = "" if path is None else f": {path}"
    low, high = (float(v) for v in torch.aminmax(values))
    if low == high:
        raise ValueError(f"no signal: every voxel of every volume is {low:g}{place}")
    flat = values.flatten(1)
    if bool((flat.amin(1) == flat.amax(1)).all()):
        raise ValueError(f"no signal: every volume is constant{place}")
    lowest = values[bvals == bvals.min()]
    filled = int((lowest != 0).sum())
    if filled == 0:
        raise ValueError(f"no signal in the volumes of the lowest b-value, {float(bvals.min()):g}{place}")
    share = int((lowest < 0).sum()) / filled
    if share > NEGATIVE_SHARE:
        raise ValueError(f"no signal: {share:.0%} of the voxels at the lowest b-value are negative{place}")
