"""Plugin of pytest: a line of JSON for every test as it ends; tests that passed in an earlier call are left out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

LINES = "GPU_LINES"  # name of the variable with the file of all lines


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    done = _passed(Path(os.environ[LINES]))
    again = [item for item in items if item.nodeid in done]
    config.hook.pytest_deselected(items=again)
    items[:] = [item for item in items if item.nodeid not in done]


def _passed(path: Path) -> set[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = [json.loads(line) for line in lines]
    return {line["test"] for line in found if line.get("outcome") == "passed"}


class _Lines:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: Any) -> None:
        ended = report.when == "call" or report.outcome != "passed"  # a skip or an error ends in its set-up
        if not ended:
            return
        line = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
        if report.failed:
            line["error"] = str(report.longrepr)[-1500:]
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        terminal.write(f"\n{json.dumps(line)}\n", flush=True)  # after the letter of another test

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:  # none is left
            session.exitstatus = pytest.ExitCode.OK


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Lines(config))
