"""bf16 on both devices: MONAI's engines can only autocast on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dmri_monai.flags import flag

__all__ = ["CpuAutocast", "autocast", "cuda_amp"]


class _SmallInFloat32(TorchFunctionMode):
    """Convolutions of a grid that is smaller than their kernel, in float32.

    The gradient of such a kernel in bf16 is computed from memory that holds anything, or ends the process (oneDNN
    without AVX-512, torch 2.13).
    """

    CONVOLUTIONS = (torch.conv3d, torch.conv_transpose3d)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self.CONVOLUTIONS or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        image, weight, *rest = args
        if all(n >= k for n, k in zip(image.shape[-3:], weight.shape[-3:], strict=True)):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return func(image.float(), weight.float(), *rest, **kwargs)


class CpuAutocast(nn.Module):
    """Runs `network` under bf16 autocast on the CPU; inputs and outputs, also a list of these, stay float32.

    In training so do convolutions of grids that are smaller than the kernel.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16), _SmallInFloat32():
            output = self.network(*args, **kwargs)
        return [level.float() for level in output] if isinstance(output, list) else output.float()


def autocast(network: nn.Module, amp: bool, device: torch.device) -> nn.Module:
    """What the engine should call: `network` itself, or wrapped in :class:`CpuAutocast` for bf16 on the CPU."""
    return CpuAutocast(network) if flag("amp", amp) and device.type == "cpu" else network


def cuda_amp(amp: bool, device: torch.device) -> bool:
    """Whether MONAI's engine should autocast by itself, with `amp_kwargs={"dtype": torch.bfloat16}`."""
    return flag("amp", amp) and device.type == "cuda"
