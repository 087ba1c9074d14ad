"""How a lack of memory is told: in one line, with what it was and what to try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["ran_out_of_memory", "telling_memory"]

TOLD = "out of memory: "
# how torch says it beside its own class: its allocator, cuBLAS, the kernel that ended a worker
SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "is killed by signal: Killed")


@contextmanager
def telling_memory(what: str, advice: str) -> Iterator[None]:
    """A lack of memory inside, on the CPU or a GPU, becomes a MemoryError of one line: `what` it was, and `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if str(error).startswith(TOLD) or not ran_out_of_memory(error):
            raise
        raise MemoryError(f"{TOLD}{what}; {advice}") from None


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what it was raised from, is a lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS):
            return True
        error = error.__cause__
    return False
