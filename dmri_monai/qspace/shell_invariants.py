"""What the shells of a scan tell of each voxel that does not depend on how the head lies.

Compiled by TorchScript too, which knows no globals: the bounds stand where they are used.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["INVARIANTS", "shell_invariants"]

INVARIANTS = 5


def shell_invariants(channels: Tensor, slots: int) -> Tensor:
    """(B, 5, ...) of channels (B, C, ...) of shells in `slots` slots, l_max at least 2, as `shell_channels` makes them.

    b0 over its median, at most 4; apparent diffusivity -log(S/S0) / b, um2/ms; the root power of degree 2 over that of
    degree 0, three times; b in ms/um2; log of the number of measurements, at most 33, over 4.  All but the first are
    those of the shell whose b-value is nearest to 1000 s/mm2, as a ratio.  Diffusivity and power are 0 where there is
    no signal.
    """
    mean, presence, b, log_n = channels[:, 1 : 1 + 4 * slots].unflatten(1, [4, slots]).unbind(1)
    second = channels[:, 1 + 4 * slots : 1 + 9 * slots].unflatten(1, [slots, 5])
    away = b.clamp(min=0.02).log().abs() + 1e3 * (1 - presence)
    shell = away.argmin(dim=1, keepdim=True)
    mean, b, log_n = mean.gather(1, shell), b.gather(1, shell), log_n.gather(1, shell)
    power = second.square().sum(2).gather(1, shell).clamp(min=1e-8).sqrt()
    ratio = mean / math.sqrt(4 * math.pi)
    signal = (ratio > 1e-3).to(ratio.dtype)
    diffusivity = (-ratio.clamp(0.02, 1.2).log() / b.clamp(min=0.2)).clamp(-0.5, 3.5) * signal
    anisotropy = 3.0 * (power / mean.clamp(min=0.3)).clamp(max=1.0) * signal
    return torch.cat(
        [channels[:, :1].clamp(max=4.0), diffusivity, anisotropy, b, log_n.clamp(max=3.5) / 4], dim=1
    )
