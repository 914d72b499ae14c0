"""Per-step policies whose requests are aborted, or whose clients leave: one row each, and pairs (kl_guided).

Which of them wins is nobody's choice: the context is short, so the rows end by themselves within a second.
So a request is repeated until it was interrupted in time, and that one is judged.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest

from integration_tests.helpers.clients import (
    PROMPT,
    abort,
    events,
    eventually,
    leave,
    metric,
    post,
    power_of,
    quiet,
    running,
    scheduled,
    sse_lines,
)
from integration_tests.server import Server
from integration_tests.tests import test_kl_guided_server as guided
from integration_tests.tests.test_kl_guided_server import GUIDED, decoded_in_lock_step
from integration_tests.tests.test_policies_server import LENGTH, SIGMA, ask

pytestmark = pytest.mark.server

Json = dict[str, Any]
T = TypeVar("T")

ENDLESS: Json = {"max_new_tokens": 200, "ignore_eos": True}
ATTEMPTS = 20


def overtaken(attempt: Callable[[int], T], in_time: Callable[[T], bool]) -> T:
    """The outcome of the first of some attempts (their number is passed) that was interrupted in time."""
    for number in range(ATTEMPTS):
        outcome = attempt(number)
        if in_time(outcome):
            return outcome
    raise AssertionError(f"none of {ATTEMPTS} requests was interrupted: the last came to {outcome}")


def check_that_rows_stop(server: Server, body_of: Callable[[int], Json], children: int) -> None:
    """A client that leaves once all of its rows run stops them before they have drawn all of their tokens.

    Every step of a batch calls the kernel that draws: for rows that nobody stops, once a token.

    Args:
        body_of: attempt -> an endless /generate request, alone on this server.
        children: requests that it makes of the scheduler.
    """

    def steps() -> float:
        return metric(server, "sglang_power_kernel_calls_total", function="sample_rows")

    def attempt(number: int) -> float:
        ready, before, drawn = threading.Event(), scheduled(server), steps()
        with running(functools.partial(leave, server, "/generate", body_of(number), ready)):
            eventually(lambda: scheduled(server) >= before + children, "all rows run")
            ready.set()
        quiet(server)
        return steps() - drawn

    overtaken(attempt, lambda drawn: drawn < ENDLESS["max_new_tokens"])


# --- one row ------------------------------------------------------------------------------------------


def test_an_abort_of_a_row_returns_what_there_was(pivot_server: Server) -> None:
    begun = ask(pivot_server, SIGMA)["output_ids"]
    params = {**ENDLESS, "custom_params": SIGMA}

    def attempt(number: int) -> Json:
        rid = f"policy-abort-{number}"
        body = {"text": PROMPT, "rid": rid, "stream": True, "sampling_params": params}
        lines = sse_lines(pivot_server, "/generate", body)
        next(lines)
        abort(pivot_server, rid=rid)
        *_, last, done = lines
        assert done == "data: [DONE]"
        answer: Json = json.loads(last.removeprefix("data: "))
        return answer

    answer = overtaken(attempt, lambda answer: answer["meta_info"]["finish_reason"]["type"] == "abort")
    ids = answer["output_ids"]
    assert 0 < len(ids) < ENDLESS["max_new_tokens"]
    assert ids[:LENGTH] == begun[: len(ids)]
    assert power_of(answer)["sampler"] == "top_n_sigma"
    quiet(pivot_server)


def test_a_client_that_leaves_stops_its_rows(pivot_server: Server) -> None:
    body = {"text": PROMPT, "sampling_params": {**ENDLESS, "n": 4, "custom_params": SIGMA}, "stream": True}
    check_that_rows_stop(pivot_server, lambda _: body, children=5)


# --- pairs --------------------------------------------------------------------------------------------


def endless(rid: str, n: int = 1, **fields: Any) -> Json:
    """A request of n answers of 200 tokens."""
    params = {**ENDLESS, "n": n, "custom_params": {**GUIDED, "seed": 10}}
    return {"text": PROMPT, "rid": rid, "sampling_params": params, **fields}


def interrupted(server: Server, call: Callable[[], T], n: int, interrupt: Callable[[], None]) -> T:
    """What a request of n answers comes to, interrupted as soon as all of its pairs run."""
    before = scheduled(server)
    with running(call) as future:
        eventually(lambda: future.done() or scheduled(server) >= before + 2 + 2 * n, "all pairs run")
        interrupt()
        result: T = future.result()
    return result


def ends_of(answers: Sequence[Json]) -> list[str]:
    """How answers ended."""
    return [answer["meta_info"]["finish_reason"]["type"] for answer in answers]


def test_an_abort_of_a_pair_returns_what_there_was(pivot_server: Server) -> None:
    begun = guided.ask(pivot_server, 10, ignore_eos=True)["output_ids"]

    def attempt(number: int) -> Json:
        rid = f"guided-abort-{number}"
        request = functools.partial(post, pivot_server, "/generate", endless(rid))
        stop = functools.partial(abort, pivot_server, rid=rid)
        answer: Json = interrupted(pivot_server, request, 1, stop).json()
        return answer

    answer = overtaken(attempt, lambda answer: ends_of([answer]) == ["abort"])
    ids = answer["output_ids"]
    assert 0 < len(ids) < ENDLESS["max_new_tokens"]
    assert ids[: len(begun)] == begun[: len(ids)]
    assert answer["meta_info"]["completion_tokens"] == len(ids)
    assert decoded_in_lock_step(answer)
    quiet(pivot_server)
    rid = answer["meta_info"]["id"]
    assert guided.ask(pivot_server, 10, body={"rid": rid})["meta_info"]["id"] == rid


def test_abort_all_ends_every_pair_of_a_stream(pivot_server: Server) -> None:
    def attempt(number: int) -> Sequence[Json]:
        body = endless(f"guided-all-{number}", n=3, stream=True)
        request = functools.partial(events, pivot_server, "/generate", body)
        stop = functools.partial(abort, pivot_server, abort_all=True)
        chunks = interrupted(pivot_server, request, 3, stop)
        return list({chunk["index"]: chunk for chunk in chunks}.values())

    def in_time(answers: Sequence[Json]) -> bool:
        """In the first half of some answer: none of the others can have been at its end."""
        half = ENDLESS["max_new_tokens"] // 2
        aborted = [answer for answer in answers if ends_of([answer]) == ["abort"]]
        return any(len(answer["output_ids"]) <= half for answer in aborted)

    assert ends_of(overtaken(attempt, in_time)) == ["abort"] * 3
    quiet(pivot_server)


def test_a_client_that_leaves_stops_both_rows(pivot_server: Server) -> None:
    def body_of(number: int) -> Json:
        return endless(f"guided-gone-{number}", n=4, stream=True)

    check_that_rows_stop(pivot_server, body_of, children=2 + 2 * 4)
    assert ends_of([guided.ask(pivot_server, 11)]) == ["stop"]


def test_a_client_that_leaves_whole_answers_leaves_nothing(pivot_server: Server) -> None:
    """SGLang looks after the client of a whole answer every four seconds: these rows end before that."""
    ready = threading.Event()
    request = functools.partial(leave, pivot_server, "/generate", endless("guided-left", n=4), ready)
    interrupted(pivot_server, request, 4, ready.set)
    quiet(pivot_server)
    assert ends_of([guided.ask(pivot_server, 11, body={"rid": "guided-left"})]) == ["stop"]
