"""Counts of attempts by kind and outcome, and forked processes to attack."""

from __future__ import annotations

import os
import re
import traceback
from collections import Counter
from collections.abc import Callable, Mapping

Counts = dict[str, Counter[str]]
OUTCOMES = ("wrong", "lost", "left over")
BLOCK = re.compile(r"<!-- counts -->.*<!-- end of counts -->", re.DOTALL)


def table(counts: Mapping[str, Counter[str]]) -> str:
    """Markdown: a row for each kind of fault, and the sum."""
    rows = {**counts, "**sum**": sum(counts.values(), Counter())}
    lines = [f"| fault | attempts | {' | '.join(OUTCOMES)} |", f"|---|--:|{'--:|' * len(OUTCOMES)}"]
    for kind, found in rows.items():
        shown = " | ".join(f"{found[outcome]}" for outcome in OUTCOMES)
        attempts = f"{found.total():,}".replace(",", " ")
        lines.append(f"| {kind} | {attempts} | {shown} |")
    return "\n".join(lines)


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a copy of this process, with everything imported; returns its number.

    It ends with 0, or 1 and its error on stderr, without the finalisers of pytest.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    except SystemExit as error:
        status = int(error.code or 0) if isinstance(error.code, int | None) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """Exit code of a forked process, the negative number of a signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
