"""What a server runs out of: places in the queue, room on the disk, file descriptors, the folder of its log.

`make test-faults`. Serving goes on, or says no at once; what was lost is counted, and comes back by itself.
"""

from __future__ import annotations

import resource
import shutil
import socket
from collections import Counter
from contextlib import ExitStack
from functools import partial
from urllib.parse import urlsplit

import httpx
import pytest

from integration_tests.helpers.clients import (
    HTTP,
    LONG,
    PROMPT,
    QUICK,
    eventually,
    generate,
    metric,
    power_of,
)
from integration_tests.helpers.contract import CHAT_STREAM, GENERATE, GENERATE_STREAM
from integration_tests.helpers.faults import ask, at_work, clients, descriptors, idle, limited
from integration_tests.helpers.trials import SHORT, Ground
from integration_tests.server import Server

pytestmark = pytest.mark.server

DROPPED = "sglang_power_experiment_log_lines_dropped_total"


def enrolled(server: Server, unit: str) -> None:
    body = {"text": PROMPT, "sampling_params": SHORT}
    seen = ask(server, "/generate", body, headers={"x-logged": unit})
    assert seen.status == httpx.codes.OK, seen


def test_a_full_queue_says_no_and_keeps_what_it_took(fault_server: Server) -> None:
    """16 run and 16 wait: of 100 at once some are refused with 503, none with anything else."""
    vote = {"sampler": "vote", "samples": 4}
    asked = [
        (door, door.body(vote, 24)) for door in (GENERATE, GENERATE_STREAM, CHAT_STREAM) for _ in range(10)
    ]
    plain = [(GENERATE, {"text": PROMPT, "sampling_params": {"max_new_tokens": 48, "ignore_eos": True}})] * 70
    with clients([partial(ask, fault_server, door.path, body) for door, body in [*asked, *plain]]) as ended:
        seen = ended()
    told = Counter(
        "503" if '"status_code": 503' in each.text or each.status == 503 else str(each.status)
        for each in seen
    )
    assert set(told) <= {"200", "503"}, [each for each in seen if each.status not in (200, 503)]
    assert told["200"] > 0
    assert told["503"] > 0, "nothing was refused: the test did not fill the queue"
    idle(fault_server)
    assert power_of(generate(fault_server))["sampler"] == "power"


def test_a_full_disk_costs_lines_and_no_answer(fault_server: Server, fault_ground: Ground) -> None:
    """The server's own log is on the full disk, too."""
    enrolled(fault_server, "before")
    eventually(lambda: bool(fault_ground.lines("completion", "logged")), "lines are written")
    before = metric(fault_server, DROPPED)
    largest = max(file.stat().st_size for file in fault_ground.log.glob("*.jsonl"))
    with limited(fault_server.pid, resource.RLIMIT_FSIZE, largest + 10):
        for number in range(5):
            enrolled(fault_server, f"full-{number}")
        eventually(lambda: metric(fault_server, DROPPED) >= before + 5, "lost lines are counted")
    told = len(fault_ground.lines("completion", "logged"))
    enrolled(fault_server, "after")
    eventually(lambda: len(fault_ground.lines("completion", "logged")) > told, "lines are written again")


def test_a_log_folder_that_was_deleted_comes_back(fault_server: Server, fault_ground: Ground) -> None:
    enrolled(fault_server, "first")
    eventually(lambda: bool(fault_ground.lines("completion", "logged")), "lines are written")
    shutil.rmtree(fault_ground.log)

    def written() -> bool:
        enrolled(fault_server, "again")
        return fault_ground.log.exists() and bool(fault_ground.lines("completion", "logged"))

    eventually(written, "lines are in a new file")
    assert metric(fault_server, "sglang_power_experiment_log_trouble_total", trouble="sync") >= 1


def test_a_folder_that_cannot_be_made_costs_lines_and_no_answer(
    fault_server: Server, fault_ground: Ground
) -> None:
    before = metric(fault_server, DROPPED)
    shutil.rmtree(fault_ground.log, ignore_errors=True)
    fault_ground.log.write_text("a file in its place")
    try:

        def lost() -> bool:
            enrolled(fault_server, "nowhere")
            return metric(fault_server, DROPPED) > before

        eventually(lost, "lost lines are counted")
    finally:
        fault_ground.log.unlink()
    enrolled(fault_server, "back")
    eventually(lambda: bool(fault_ground.lines("completion", "logged")), "lines are written again")


def test_a_server_without_descriptors_goes_on_with_what_it_has(fault_server: Server) -> None:
    """New connections are closed, or wait; those that are there are answered; then all are."""
    address = urlsplit(fault_server.url)
    chain = partial(
        ask, fault_server, "/generate", GENERATE.body({**LONG, "max_steps": 60}, 96, ignore_eos=True)
    )
    with clients([chain]) as ended, ExitStack() as stack:
        eventually(lambda: at_work(fault_server)["requests"] == 1, "it runs")
        with limited(fault_server.pid, resource.RLIMIT_NOFILE, descriptors(fault_server.pid) + 4):
            for _ in range(300):
                connection = socket.create_connection((address.hostname, address.port), timeout=10)
                stack.enter_context(connection)
            with httpx.Client(timeout=2.0) as outside, pytest.raises(httpx.HTTPError):
                outside.get(fault_server.url + "/v1/models")
            (seen,) = ended()
            assert seen.status == httpx.codes.OK, seen
        stack.close()
        eventually(lambda: _answers(fault_server), "it takes connections again")
    assert power_of(generate(fault_server, **QUICK))["sampler"] == "power"


def _answers(server: Server) -> bool:
    try:
        return HTTP.get(server.url + "/v1/models", timeout=5.0).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
