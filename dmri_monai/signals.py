"""SIGTERM ends a process as Ctrl-C does: with everything tidied up."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

__all__ = ["end_on_sigterm"]


def end_on_sigterm() -> None:
    """From now on SIGTERM raises SystemExit in the main thread: temporary files go, locks and MLflow runs are settled.

    torchrun, SLURM and `docker stop` send it.  Without effect in other threads, where a program that uses this package
    has a handler of its own, and in processes that are forked from this one, such as those that load data.
    """
    owner = os.getpid()

    def end(*_: Any) -> None:
        if os.getpid() != owner:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        sys.exit(128 + signal.SIGTERM)

    free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if free and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)
