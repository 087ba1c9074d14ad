"""How much memory a network will need for a volume, before it is given one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["PeakMemory", "available_bytes", "estimated_bytes"]

PROBE = 24  # voxels an axis of the piece that is tried
# what the dispatcher does not see: convolution workspaces and the allocator's rounding
WORKSPACE = 1.5


class PeakMemory(TorchDispatchMode):
    """Context that counts the bytes of all tensors made inside it and alive at once; `peak` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def estimated_bytes(run: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """Peak bytes that `run` will need for `image` (B, C, X, Y, Z), from a central piece of it of at most 24 voxels an
    axis: what a convolutional network holds at once grows with the number of voxels.

    The first run of a network may build kernels, which then count as if they grew too: a second estimate is lower.
    """
    piece = image[tuple([slice(None)] * 2 + [_middle(n) for n in image.shape[2:]])].contiguous()
    with torch.no_grad(), PeakMemory() as memory:
        run(piece)
    return round(WORKSPACE * memory.peak * image[0, 0].numel() / piece[0, 0].numel())


def _middle(n: int) -> slice:
    first = max(0, (n - PROBE) // 2)
    return slice(first, first + min(n, PROBE))


def available_bytes(device: torch.device) -> int | None:
    """Bytes that can still be had on `device`; None where nothing tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    found = [value for value in (_host_bytes(), _group_bytes()) if value is not None]
    return min(found) if found else None


def _host_bytes() -> int | None:
    path = Path("/proc/meminfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    values = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return values[0] * 1024 if values else None


def _group_bytes() -> int | None:
    """What the control group (container) leaves, if it sets a limit; file cache counts as free."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text(encoding="utf-8"))
        used = int((folder / "memory.current").read_text(encoding="utf-8"))
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
        )
    except (OSError, ValueError):  # no such group, or no limit ("max")
        return None
    return max(0, limit - used + int(statistics.get("inactive_file", 0)))
