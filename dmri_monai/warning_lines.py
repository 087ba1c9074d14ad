"""Warnings as a command shows them: one line each on stderr, `warning: …`, whoever gives them."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["show_warning_lines", "tell_warning", "warning_lines"]

LOGGER = "dmri_monai"


def tell_warning(message: object) -> None:
    """Write `warning: message` to stderr in one line, past a progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


@contextmanager
def warning_lines() -> Iterator[None]:
    """Inside, Python's warnings and those of this package's log become lines; which are shown, filters say as ever."""
    handler, logger = _Lines(logging.WARNING), logging.getLogger(LOGGER)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show
            yield
    finally:
        logger.removeHandler(handler)


def show_warning_lines() -> None:
    """:func:`warning_lines` for the rest of a process that a command started."""
    warnings.showwarning = _show
    logging.getLogger(LOGGER).addHandler(_Lines(logging.WARNING))


def _show(message: Warning | str, *_: Any, **__: Any) -> None:
    tell_warning(message)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell_warning(record.getMessage())
