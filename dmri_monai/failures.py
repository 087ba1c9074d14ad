"""How a failure ends an ignite engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from ignite.engine import Engine, Events

from dmri_monai.out_of_memory import telling_memory

__all__ = ["on_failure", "scans_of"]

Handler = Callable[[Engine, BaseException], None]
TRAINING_ADVICE = "try a smaller --crop_size or --batch_size, `--amp true`, or larger voxels (--spacing_mm)"

_handlers: WeakKeyDictionary[Engine, list[Handler]] = WeakKeyDictionary()
_raised: WeakKeyDictionary[Engine, BaseException] = WeakKeyDictionary()


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
    if _raised.get(engine) is not error:  # ignite tells of an error of an iteration twice
        for handler in _handlers[engine]:
            handler(engine, error)
        _raised[engine] = error = _told(engine, error)
    raise error


def _told(engine: Engine, error: BaseException) -> BaseException:
    place = f"epoch {engine.state.epoch}, iteration {engine.state.iteration}"
    try:
        with telling_memory(f"{place}: {scans_of(engine.state.batch)}", TRAINING_ADVICE):
            raise error
    except BaseException as told:
        return told


def scans_of(batch: Any) -> str:
    """The files of a collated `batch`, as far as it knows them."""
    image = batch.get("image") if isinstance(batch, Mapping) else None
    names = getattr(image, "meta", {}).get("filename_or_obj", [])
    known = [names] if isinstance(names, str) else list(names)
    return ", ".join(dict.fromkeys(map(str, known))) or "a batch without file names"
