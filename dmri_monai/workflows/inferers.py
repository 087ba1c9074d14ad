"""Inference on whole volumes of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer
from torch import Tensor
from torch.nn import functional as F

__all__ = ["FullVolumeInferer"]


class FullVolumeInferer(Inferer):
    """One window over the whole volume, padded with zeros at the far ends to a `multiple`, cropped back afterwards.

    inputs: (B, C, X, Y, Z) -> (B, K, X, Y, Z). The result does not depend on any window placement.
    """

    def __init__(self, multiple: int = 1) -> None:
        super().__init__()
        self.multiple = multiple

    def __call__(
        self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        size = inputs.shape[2:]
        padding: list[int] = []
        for n in reversed(size):
            padding += [0, -n % self.multiple]
        output = network(F.pad(inputs, padding), *args, **kwargs)
        return output[..., : size[0], : size[1], : size[2]]
