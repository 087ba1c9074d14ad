"""Counts of what the suite did and found, printed as a table at its end: the one `docs/reliability.md` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.counting import BLOCK, Counts, table

DOCS = Path(__file__).parents[2] / "docs" / "reliability.md"
_counts: Counts = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-counts", action="store_true", help="put the table of tests/faults into the docs"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def count() -> Callable[..., None]:
    """Function that counts n attempts of a kind with an outcome: "right", "wrong", "lost" or "left over"."""

    def add(kind: str, outcome: str, n: int = 1) -> None:
        _counts.setdefault(kind, Counter())[outcome] += n

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not _counts:
        return
    terminalreporter.section("faults")
    terminalreporter.write_line(table(_counts))
    if config.getoption("--write-counts", False):  # unknown unless this folder itself is asked for
        block = f"<!-- counts -->\n\n{table(_counts)}\n\n<!-- end of counts -->"
        DOCS.write_text(BLOCK.sub(block, DOCS.read_text(encoding="utf-8")), encoding="utf-8")
