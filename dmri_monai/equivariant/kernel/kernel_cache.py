"""Kernels that a layer in eval mode builds once and keeps until its weights change."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.finite_values import is_recording

__all__ = ["KeptKernel", "may_keep", "size_in_bytes", "state_of_weights"]

State = tuple[tuple[int, int], ...]


class KeptKernel(NamedTuple):
    """Arrays, and what they were built from: weights, gradient tables, and the shape and device of the input."""

    state: State
    tables: tuple[Tensor | None, ...]
    shape: torch.Size
    device: torch.device
    arrays: Any

    def fits(self, state: State, tables: tuple[Tensor | None, ...], x: Tensor) -> bool:
        """Whether the arrays are those for `x` and `tables`."""
        if (self.state, self.shape, self.device) != (state, x.shape, x.device):
            return False
        return all(_equal(a, b) for a, b in zip(self.tables, tables, strict=True))


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and torch.equal(a, b)


def may_keep(module: nn.Module) -> bool:
    """Whether `module` is in eval mode, no gradient is asked for and no graph is recorded."""
    return not (module.training or torch.is_grad_enabled() or is_recording())


def state_of_weights(module: nn.Module) -> State:
    """Changes with every in-place change or exchange of a parameter, except through `.data`."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in module.parameters())


def size_in_bytes(arrays: Any) -> int:
    """Memory of nested tuples, lists and dictionaries of tensors."""
    if isinstance(arrays, Tensor):
        return arrays.numel() * arrays.element_size()
    if isinstance(arrays, dict):
        return size_in_bytes(list(arrays.values()))
    return sum(map(size_in_bytes, arrays)) if isinstance(arrays, tuple | list) else 0
