"""How a failure ends an ignite engine, and how a lack of memory is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from ignite.engine import Engine, Events

__all__ = ["ran_out_of_memory", "on_failure", "scans_of", "telling_memory"]

Handler = Callable[[Engine, BaseException], None]
TOLD = "out of memory: "
# how torch says it beside its own class: its allocator, cuBLAS, the kernel that ended a worker
SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "is killed by signal: Killed")
TRAINING_ADVICE = "try a smaller --crop_size or --batch_size, `--amp true`, or larger voxels (--spacing_mm)"

_handlers: WeakKeyDictionary[Engine, list[Handler]] = WeakKeyDictionary()


def on_failure(engine: Engine, handler: Handler) -> None:
    """Call `handler` with engine and error where a run of `engine` fails; the error is raised after the last of them.

    ignite itself swallows an error that has a handler, and leaves out all handlers after one that raises.  A lack of
    memory is raised as MemoryError naming the scans of the batch.
    """
    if engine not in _handlers:
        _handlers[engine] = []
        engine.add_event_handler(Events.EXCEPTION_RAISED, _fail)
    _handlers[engine].append(handler)


def _fail(engine: Engine, error: BaseException) -> None:
    for handler in _handlers[engine]:
        handler(engine, error)
    place = f"epoch {engine.state.epoch}, iteration {engine.state.iteration}"
    with telling_memory(f"{place}: {scans_of(engine.state.batch)}", TRAINING_ADVICE):
        raise error


def scans_of(batch: Any) -> str:
    """The files of a collated `batch`, as far as it knows them."""
    image = batch.get("image") if isinstance(batch, Mapping) else None
    names = getattr(image, "meta", {}).get("filename_or_obj", [])
    known = [names] if isinstance(names, str) else list(names)
    return ", ".join(dict.fromkeys(map(str, known))) or "a batch without file names"


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
