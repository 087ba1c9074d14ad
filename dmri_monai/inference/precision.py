"""bf16 on both devices: MONAI's engines can only autocast on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmri_monai.flags import flag

__all__ = ["CpuAutocast", "autocast", "cuda_amp"]


class CpuAutocast(nn.Module):
    """Runs `network` under bf16 autocast on the CPU; inputs and outputs, also a list of these, stay float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor | list[Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = self.network(*args, **kwargs)
        return [level.float() for level in output] if isinstance(output, list) else output.float()


def autocast(network: nn.Module, amp: bool, device: torch.device) -> nn.Module:
    """What the engine should call: `network` itself, or wrapped in :class:`CpuAutocast` for bf16 on the CPU."""
    return CpuAutocast(network) if flag("amp", amp) and device.type == "cpu" else network


def cuda_amp(amp: bool, device: torch.device) -> bool:
    """Whether MONAI's engine should autocast by itself, with `amp_kwargs={"dtype": torch.bfloat16}`."""
    return flag("amp", amp) and device.type == "cuda"
