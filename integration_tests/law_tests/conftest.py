"""The servers of the law tests, and the record of what they found.

`make test-law` runs this folder, which takes longer than `make test` may, and writes results/law.json.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from integration_tests.measured import origin
from integration_tests.tests.conftest import (
    law_model,
    law_server,
    logs,
    no_thread_is_left,
    pivot_server,
    prose_ground,
    prose_server,
    third_party,
)

__all__ = [
    "law_model",
    "law_server",
    "logs",
    "no_thread_is_left",
    "pivot_server",
    "prose_ground",
    "prose_server",
    "third_party",
]

RESULTS = Path(__file__).parents[1] / "results" / "law.json"
RECORD = pytest.StashKey[list[dict[str, Any]]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Note the outcome of every test, and the figures that it printed."""
    report = yield
    if call.when == "call":
        entry = {"test": item.nodeid.rpartition("/")[2], "outcome": report.outcome}
        item.config.stash.setdefault(RECORD, []).append(
            entry | {"figures": report.capstdout.split("\n")[:-1]}
        )
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the record, where it is asked for."""
    if not session.config.getoption("--write-results"):
        return
    record = {
        **origin("make test-law"),
        "tests": session.config.stash.get(RECORD, []),
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
