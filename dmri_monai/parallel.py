"""Several processes, one training: `torchrun -m monai.bundle run training` with `configs/multi_gpu.json`."""

from __future__ import annotations

import os
from collections.abc import Sized

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "check_enough_scans",
    "data_parallel",
    "is_main",
    "local_device",
    "start_parallel",
    "stop_parallel",
]


def start_parallel() -> None:
    """Join the processes that torchrun started: nccl with GPUs, gloo without. Nothing outside of torchrun."""
    if "RANK" in os.environ and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(local_device())
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def stop_parallel() -> None:
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def check_enough_scans(dataset: Sized, name: str = "validation") -> None:
    """ValueError naming both numbers where `dataset` has fewer scans than there are processes: one would have none."""
    scans, processes = len(dataset), int(idist.get_world_size())
    if scans < processes:
        raise ValueError(
            f"{scans} {name} scan{'s' if scans != 1 else ''} for {processes} processes, each needs at least one: "
            f"start fewer processes (--nproc_per_node={scans}), or change the split"
        )


def is_main() -> bool:
    """Whether this process writes checkpoints, pictures and the MLflow run: the first, or the only one."""
    return int(idist.get_rank()) == 0


def local_device() -> torch.device:
    """The GPU of this process on its machine; the CPU without GPUs."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """`network` with gradients averaged over the processes; itself in a single process.

    Frozen epochs change which parameters take part, so those without a gradient are looked for.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return network
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids, find_unused_parameters=True)
