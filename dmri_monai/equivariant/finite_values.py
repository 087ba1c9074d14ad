"""Checks of values, which a recorded graph cannot hold and which are left out there."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_finite", "is_recording"]


def is_recording() -> bool:
    """Whether torch compiles, exports or traces: decisions that depend on values cannot be part of a graph."""
    recording: bool = torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None
    return recording


def check_finite(x: Tensor, name: str, mask: Tensor | None = None) -> None:
    """Raise ValueError with both numbers where data `x` (N, C, Q, ...), valid by `mask` (N, Q), hold NaN or infinity.

    Data come from outside; what an earlier layer computed for a training step is not looked at, because mixed
    precision may overflow there and recovers by itself, and because the check waits for the device.  Without gradients,
    data cannot be told from what a layer computed: then nothing on a device but the CPU is looked at.
    """
    if x.grad_fn is not None or is_recording() or _is_capturing(x):
        return
    if x.device.type != "cpu" and not torch.is_grad_enabled():
        return
    values = x.detach().as_subclass(Tensor)
    if mask is not None:
        values = torch.where(mask[:, None, :, None, None, None], values, 0.0)
    try:
        finite = bool(values.sum(dtype=torch.promote_types(x.dtype, torch.float32)).isfinite())
    except RuntimeError:  # vmap, meta and fake tensors have no values to look at
        return
    bad = 0 if finite else int((~values.isfinite()).sum())  # a sum can overflow where no value has
    if bad:
        raise ValueError(f"{name}: {bad} of {x.numel()} values of the input are not finite")


def _is_capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()
