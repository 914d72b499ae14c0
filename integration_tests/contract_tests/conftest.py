"""One server for the contract of all samplers through all routes, and the table of what it came to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration_tests.helpers.contract import Table
from integration_tests.tests.conftest import logs, no_thread_is_left, pivot_server, third_party

__all__ = ["logs", "no_thread_is_left", "pivot_server", "third_party"]

TABLE = pytest.StashKey[Table]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note the result of every check."""
    report = yield
    params = getattr(getattr(item, "callspec", None), "params", {})
    if call.when == "call" and "check" in params:
        table = item.config.stash.setdefault(TABLE, Table())
        table.add(params["sampler"], params["check"], call.excinfo is None)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    table = config.stash.get(TABLE, None)
    if table is not None:
        terminalreporter.section("routes through which each sampler keeps each promise")
        for line in table.lines():
            terminalreporter.write_line(line)
