"""`sglang-power check` and several tokenizer workers: each says what it has in force. No network.

Which worker takes a connection is decided here: the first one takes a given number of them in a row.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sglang_power.check_cli import describe
from sglang_power.cli import main
from sglang_power.experiments.rejected import RejectedEdits

PROBLEM = "exp/a.yaml, line 3, field 'unit': Field required"


def worker(pid: int, *, enrolling: bool = True, edit: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "role": "tokenizer",
        "pid": pid,
        "version": "0.1.0",
        "hooks": {"target": "live"},
        "experiments": {"a": enrolling},
        "rejected_edit": edit,
    }


def status_of(reporting: dict[str, Any], workers: int) -> dict[str, Any]:
    scheduler = {
        "role": "scheduler",
        "dp_rank": 0,
        "pid": 9,
        "version": "0.1.0",
        "hooks": {"sampler": "live"},
    }
    return {
        "sglang": "0.5.23",
        "served_model": "m",
        "processes": [reporting, scheduler],
        "refused": [],
        "limits": {},
        "presets": {},
        "default": None,
        "experiments": reporting["experiments"],
        "tokenizer_workers": workers,
    }


Take = Callable[[int], dict[str, Any] | None]
"""Number of the connection -> who takes it; None is a worker without the plugin."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[Take, int], None]:
    """A server of some workers, at every URL."""

    def serving(take: Take, workers: int) -> None:
        lock, taken = threading.Lock(), [0]

        def answer(_: httpx.Request) -> httpx.Response:
            with lock:
                number, taken[0] = taken[0], taken[0] + 1
            if (reporting := take(number)) is None:
                return httpx.Response(404)
            if not reporting:
                raise httpx.ReadTimeout("hangs")
            return httpx.Response(200, text=json.dumps(status_of(reporting, workers)))

        class Client(httpx.Client):
            def __init__(self, **settings: Any) -> None:
                super().__init__(transport=httpx.MockTransport(answer), **settings)

        monkeypatch.setattr(httpx, "Client", Client)

    return serving


def check(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, list[str]]:
    status = main(["check", *options])
    return status, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("in_a_row", [0, 1, 20])
def test_every_worker_is_asked(
    serve: Callable[[Take, int], None], capsys: pytest.CaptureFixture[str], in_a_row: int
) -> None:
    serve(lambda number: worker(11 if number <= in_a_row else 12 + number % 2), 3)
    status, lines = check(capsys)
    assert status == 0
    assert [line for line in lines if line.startswith(("tokenizer", "scheduler"))] == [
        *(f"tokenizer (pid {pid}): sglang-power 0.1.0" for pid in (11, 12, 13)),
        "scheduler (rank 0, pid 9): sglang-power 0.1.0",
    ]
    assert lines[-1] == "power sampling is live"


def test_one_worker_is_asked_once(
    serve: Callable[[Take, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    serve(lambda number: asked.append(number) or worker(11), 1)  # type: ignore[func-returns-value]
    assert check(capsys)[0] == 0
    assert asked == [0]


def test_a_worker_that_hangs_is_reported(
    serve: Callable[[Take, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    serve(lambda number: {} if number % 2 else worker(11), 2)
    status, lines = check(capsys, "--timeout", "0.3")
    assert status == 1
    assert "  missing  a worker: no answer in 0.3 s" in lines
    assert lines[-1] == "power sampling is NOT live"


def test_a_worker_without_the_plugin_is_reported(
    serve: Callable[[Take, int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """As where SGLANG_HTTP_SERVER_APP_PATH names an application that does not load plugins."""
    serve(lambda number: None if number % 2 else worker(11), 2)
    status, lines = check(capsys)
    assert status == 1
    assert "  missing  a worker: answers without the plugin" in lines


# --- experiments --------------------------------------------------------------------------------------


def told_of(*workers: dict[str, Any]) -> list[str]:
    status = status_of(workers[0], len(workers))
    status["processes"] = [*workers, *status["processes"][1:]]
    return [line for line in describe(status) if line.startswith(("experiment", "rejected"))]


def test_workers_that_differ_in_an_experiment_are_counted() -> None:
    assert told_of(worker(1), worker(2)) == ["experiment a: enrolling"]
    assert told_of(worker(1, enrolling=False), worker(2, enrolling=False)) == ["experiment a: not enrolling"]
    draining = {**worker(1), "draining": ["a"]}
    assert told_of(draining, worker(2)) == ["experiment a: enrolling, draining"]
    assert told_of(worker(1), worker(2, enrolling=False)) == [
        "experiment a: enrolling in 1 of 2 tokenizer workers"
    ]


def test_the_last_rejected_edit_is_told_once_with_the_workers_that_rejected_it() -> None:
    edit = {"at": 1_000_000_000.0, "problems": [PROBLEM], "corrected": False}
    later = {**edit, "at": 1_000_000_002.5}
    when = "rejected edit at 2001-09-09 01:46:40 UTC"
    assert told_of(worker(1, edit=edit), worker(2, edit=later))[1:] == [
        f"{when} (pid 1, 2), what was in force stays: {PROBLEM}"
    ]
    corrected = {**edit, "corrected": True}
    assert told_of(worker(1, edit=corrected), worker(2))[1:] == [
        f"{when} (pid 1), corrected since: {PROBLEM}"
    ]
    assert told_of(worker(1, edit=corrected), worker(2, edit=later))[1:] == [
        f"{when} (pid 1, 2), what was in force stays: {PROBLEM}"
    ]


def test_the_last_rejected_edit_is_remembered_with_its_first_time_and_its_correction() -> None:
    edits = RejectedEdits()
    edits.read([], 1.0)
    assert edits.last is None
    edits.read([PROBLEM], 2.0)
    edits.read([PROBLEM], 3.0)
    assert edits.last == {"at": 2.0, "problems": [PROBLEM], "corrected": False}
    edits.read([], 4.0)
    edits.read([], 5.0)
    assert edits.last == {"at": 2.0, "problems": [PROBLEM], "corrected": True}
    edits.read([PROBLEM], 6.0)
    assert edits.last == {"at": 6.0, "problems": [PROBLEM], "corrected": False}
    edits.read([PROBLEM, "another"], 7.0)
    assert edits.last == {"at": 7.0, "problems": [PROBLEM, "another"], "corrected": False}
