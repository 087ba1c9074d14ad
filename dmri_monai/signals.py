"""SIGTERM and SIGHUP end a process as Ctrl-C does: with everything tidied up."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

__all__ = ["end_on_sigterm"]

SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows lacks one
_owners: set[int] = (
    set()
)  # the processes that asked for it; a fork inherits the handler, but its number is another one


def end_on_sigterm() -> None:
    """From now on SIGTERM raises SystemExit in the main thread: temporary files go, locks and MLflow runs are settled.

    torchrun, SLURM and `docker stop` send it; SIGHUP, which a terminal sends as it closes, does the same, but not under
    `nohup`.  Without effect in other threads, where a program that uses this package has a handler of its own, and in
    processes that are forked from this one, such as those that load data.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, _end):
            _owners.add(os.getpid())
            signal.signal(number, _end)


def _end(number: int, _: Any = None) -> None:
    if os.getpid() not in _owners:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(128 + number)
