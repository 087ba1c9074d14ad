"""SIGTERM ends a process as Ctrl-C does: with everything tidied up."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

__all__ = ["end_on_sigterm"]

_owners: set[int] = (
    set()
)  # the processes that asked for it; a fork inherits the handler, but its number is another one


def end_on_sigterm() -> None:
    """From now on SIGTERM raises SystemExit in the main thread: temporary files go, locks and MLflow runs are settled.

    torchrun, SLURM and `docker stop` send it.  Without effect in other threads, where a program that uses this package
    has a handler of its own, and in processes that are forked from this one, such as those that load data.
    """
    if signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, _end):
        return
    if threading.current_thread() is threading.main_thread():
        _owners.add(os.getpid())
        signal.signal(signal.SIGTERM, _end)


def _end(*_: Any) -> None:
    if os.getpid() not in _owners:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    sys.exit(128 + signal.SIGTERM)
