"""How a failure ends an ignite engine, and how it names the scan it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from dmri_monai.out_of_memory import ran_out_of_memory, telling_memory

__all__ = ["NameScans", "detached_cause", "first_cause", "naming_scan", "on_failure", "scans_of"]

if TYPE_CHECKING:  # prediction does not need ignite, whose import takes a second
    from ignite.engine import Engine

Handler = Callable[[Any, BaseException], None]
KINDS = (ValueError, TypeError, OSError, FloatingPointError)  # kinds of errors that stay what they are
TOLD = "dmri_monai_told"  # marks an error that has the scans it is about in its message
TRAINING_ADVICE = "try a smaller --crop_size or --batch_size, `--amp true`, or larger voxels (--spacing_mm)"

_handlers: WeakKeyDictionary[Engine, list[Handler]] = WeakKeyDictionary()
_raised: WeakKeyDictionary[Engine, BaseException] = WeakKeyDictionary()
_has_batch: WeakKeyDictionary[Engine, bool] = WeakKeyDictionary()


def on_failure(engine: Engine, handler: Handler) -> None:
    """Call `handler` with engine and error where a run of `engine` fails; the error is raised after the last of them.

    ignite itself swallows an error that has a handler, and leaves out all handlers after one that raises.  What an
    iteration raises names the scans of its batch, a lack of memory as MemoryError.
    """
    from ignite.engine import Events

    if engine not in _handlers:
        _handlers[engine] = []
        engine.add_event_handler(Events.EXCEPTION_RAISED, _fail)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, _set_batch, True)
        for event in (Events.GET_BATCH_STARTED, Events.EPOCH_COMPLETED):
            engine.add_event_handler(event, _set_batch, False)
    _handlers[engine].append(handler)


class NameScans:
    """Ignite handler: errors of an iteration name the scans of its batch; see :func:`on_failure`."""

    def attach(self, engine: Engine) -> None:
        on_failure(engine, lambda *_: None)


def _set_batch(engine: Engine, there: bool) -> None:
    _has_batch[engine] = there


def _fail(engine: Engine, error: BaseException) -> None:
    if _raised.get(engine) is not error:  # ignite tells of an error of an iteration twice
        for handler in _handlers[engine]:
            handler(engine, error)
        _raised[engine] = error = _told(engine, error)
    raise error


def _told(engine: Engine, error: BaseException) -> BaseException:
    place = f"epoch {engine.state.epoch}, iteration {engine.state.iteration}"
    try:
        batch = (
            engine.state.batch if _has_batch.get(engine) else None
        )  # while one is fetched, it is the last one
        named = "" if getattr(error, TOLD, False) else scans_of(batch, "")
        with telling_memory(f"{place}: {scans_of(batch)}", TRAINING_ADVICE), naming_scan(named):
            raise error
    except BaseException as told:
        setattr(told, TOLD, True)  # that of a validation ends the training too, whose last batch is another
        return told


def scans_of(batch: Any, unknown: str = "a batch without file names") -> str:
    """The files of a collated `batch`, as far as it knows them."""
    batch = (
        batch[0] if isinstance(batch, list) and batch else batch
    )  # an evaluator splits it after its iteration
    image = batch.get("image") if isinstance(batch, Mapping) else None
    names = getattr(image, "meta", {}).get("filename_or_obj", [])
    known = [names] if isinstance(names, str) else list(names)
    return ", ".join(dict.fromkeys(map(str, known))) or unknown


@contextmanager
def naming_scan(scan: str | PathLike[str] | None) -> Iterator[None]:
    """An error inside is raised with the path of `scan` in its message, and as what MONAI wrapped in a RuntimeError.

    What is none of `KINDS` becomes a RuntimeError.  Untouched: where no path is
    known, an error that names it already, and a lack of memory, which :func:`telling_memory` tells of.
    """
    try:
        yield
    except Exception as error:
        cause = first_cause(error)
        if not scan or ran_out_of_memory(error):
            raise
        if any(name in str(cause) for name in str(scan).split(", ")):
            if cause is error:
                raise
            raise detached_cause(error) from None
        kind = next((k for k in KINDS if isinstance(cause, k)), RuntimeError)
        raise kind(f"{scan}: {cause}") from error


def first_cause(error: BaseException) -> BaseException:
    """What MONAI's Compose and ConfigParser wrapped in RuntimeErrors."""
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def detached_cause(error: BaseException) -> BaseException:
    """:func:`first_cause`, to be raised in place of `error`.

    What wrapped it lets go of it: Python enters `error` as its context, and the chain would be a ring.
    """
    while isinstance(error, RuntimeError) and error.__cause__ is not None:
        inner, error.__cause__, error.__context__ = error.__cause__, None, None
        error = inner
    return error
