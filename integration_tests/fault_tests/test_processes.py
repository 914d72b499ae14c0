"""Processes of a server that are killed, or stand still: clients learn it at once, and nothing is left over.

`make test-faults`. Moments are bounded by what a hung server would take, never asserted as speed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest
from sglang_power import cli

from integration_tests import server
from integration_tests.helpers import faults, preloaded
from integration_tests.helpers.clients import (
    HTTP,
    LONG,
    PROMPT,
    QUICK,
    active,
    eventually,
    generate,
    power_of,
    unfinished,
)
from integration_tests.helpers.contract import CHAT, CHAT_STREAM, COMPLETIONS, GENERATE, GENERATE_STREAM, Door
from integration_tests.helpers.faults import (
    Seen,
    ask,
    clients,
    detokenizer_of,
    idle,
    scheduler_of,
    stopped,
    tokenizers_of,
    wait_for_end,
)
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec

pytestmark = pytest.mark.server

HANGS_S = 60.0
"""No client waits so long for an answer that cannot come any more."""

ARGUMENTS = ["--page-size", "1", "--enable-metrics", "--log-level-http", "warning"]
PLAIN = {"text": PROMPT, "sampling_params": {"max_new_tokens": 120, "ignore_eos": True}}


def asking(
    running: Server, door: Door, timeout: float = HANGS_S, custom: faults.Json = LONG
) -> Callable[[], Seen]:
    body = door.body(custom, 96, ignore_eos=True)
    return partial(ask, running, door.path, body, timeout)


def power_starts(running: Server) -> bool:
    children: int = faults.at_work(running)["children"]
    return children > 0


def test_a_killed_scheduler_ends_the_server_and_every_request_at_once(logs: Path, tmp_path: Path) -> None:
    """No client hangs, and who supervises it starts it anew on its port."""
    spec = ServerSpec(PIVOT_MODEL, "killed", ARGUMENTS)
    doors = [GENERATE, GENERATE_STREAM, COMPLETIONS, CHAT, CHAT_STREAM]
    with server.running(spec, logs, preloaded.fork) as running:
        scheduler = scheduler_of(running)
        calls: list[Callable[[], Seen]] = [
            *[asking(running, door) for door in doors],
            partial(ask, running, "/generate", PLAIN, HANGS_S),
        ]
        with clients([*calls, *calls]) as ended:
            eventually(lambda: power_starts(running), "chains are at work")
            os.kill(scheduler, signal.SIGKILL)
            seen = ended()
        wait_for_end(running.pid)
        assert [each for each in seen if each.status == -1] == [], "a client waits for what cannot come"
        assert not [
            each
            for each in seen
            if each.status == httpx.codes.OK
            and '"finish_reason"' in each.text
            and "[DONE]" not in each.text
            and each.text.startswith("data:")
        ], "a torn stream that looks whole"
    with server.running(spec, tmp_path, preloaded.fork) as again:
        assert power_of(generate(again))["sampler"] == "power"


def test_a_killed_tokenizer_worker_takes_its_own_requests_with_it_and_no_others(logs: Path) -> None:
    """Uvicorn starts another one, with the plugin; what the dead one had asked for ends in the scheduler."""
    spec = ServerSpec(PIVOT_MODEL, "workers", [*ARGUMENTS, "--tokenizer-worker-num", "2"])
    with server.running(spec, logs, preloaded.fork) as running:
        workers = tokenizers_of(running, 2)
        assert len(workers) == 2
        lasting = {**LONG, "max_steps": 40}
        calls = [asking(running, GENERATE, 240.0, lasting) for _ in range(8)]
        with clients(calls) as ended:
            eventually(lambda: unfinished(running) >= 2, "chains are at work")
            os.kill(workers[0], signal.SIGKILL)
            seen = ended()
        statuses = {each.status for each in seen}
        assert statuses <= {0, int(httpx.codes.OK)}, seen
        assert int(httpx.codes.OK) in statuses, "the other worker's clients are answered"

        def whole() -> bool:
            return cli.main(["check", "--url", running.url, "--timeout", "10"]) == 0

        eventually(whole, "both workers have the plugin again")
        eventually(lambda: unfinished(running) == 0, "no orphan runs on")
        assert power_of(generate(running))["sampler"] == "power"


def test_requests_outlast_a_detokenizer_that_stands_still(fault_server: Server) -> None:
    """They wait, and go on when it does; a deadline that passed meanwhile ends its answer then."""
    short = {**QUICK, "seed": 3}
    expected = generate(fault_server, **short)
    detokenizer = detokenizer_of(fault_server)
    late = partial(
        ask, fault_server, "/generate", GENERATE.body({**LONG, "deadline_ms": 1000}, 96, ignore_eos=True)
    )
    early = partial(ask, fault_server, "/generate", GENERATE.body(short, 48))
    leaving = asking(fault_server, GENERATE, timeout=2.0)
    with ExitStack() as stack:
        with stopped([detokenizer]):
            ended = stack.enter_context(clients([early, late, leaving]))
            eventually(lambda: active(fault_server) == 3, "they have arrived")
            eventually(lambda: active(fault_server) == 2, "who left is not waited for")
        first, second, third = ended()
    assert first.status == second.status == httpx.codes.OK, (first, second)
    assert third.status == -1
    assert httpx.Response(200, text=first.text).json()["text"] == expected["text"]
    assert power_of(httpx.Response(200, text=second.text).json())["stopped_by"] == "deadline_ms"


def test_a_scheduler_that_stands_still_is_told_by_the_health_check_and_recovers(fault_server: Server) -> None:
    scheduler = scheduler_of(fault_server)
    with (
        stopped([scheduler]),
        clients([partial(ask, fault_server, "/generate", GENERATE.body(QUICK, 24))]) as ended,
    ):
        assert HTTP.get(fault_server.url + "/health").status_code == httpx.codes.SERVICE_UNAVAILABLE
        os.kill(scheduler, signal.SIGCONT)
        (seen,) = ended()
    assert seen.status == httpx.codes.OK, seen
    assert HTTP.get(fault_server.url + "/health").status_code == httpx.codes.OK
    idle(fault_server)
