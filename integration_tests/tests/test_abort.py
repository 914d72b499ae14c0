"""Clients that leave, operators that abort, servers that shut down: in mid-chain, nothing is left behind.

"Nothing left" is read from the server: the scheduler holds no request, no further child arrives, the
request's id is free again, and its place among the concurrent power requests too. Ids of streams are not
asked for again: two seconds after a stream SGLang aborts its id once more, whoever has it by then.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from integration_tests import server as servers
from integration_tests.helpers.clients import (
    LONG,
    MESSAGES,
    PROMPT,
    QUICK,
    WAIT_S,
    abort,
    active,
    client,
    events,
    eventually,
    generate,
    leave,
    post,
    power_of,
    quiet,
    reports,
    running,
    scheduled,
    sse_lines,
    standstill,
    together,
)
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec
from integration_tests.tests.test_policies_server import SIGMA

pytestmark = pytest.mark.server

ENDLESS = {"max_new_tokens": 96, "ignore_eos": True, "custom_params": LONG}
"""Sampling parameters of a chain of 2,400 children."""


def body_of(rid: str | None = None, **fields: Any) -> dict[str, Any]:
    """A /generate request that runs until it is stopped."""
    return {"text": PROMPT, "sampling_params": ENDLESS, **({} if rid is None else {"rid": rid}), **fields}


@contextmanager
def mid_chain(server: Server, call: Callable[[], Any]) -> Iterator[Future[Any]]:
    """A call in the background, some children into its chain."""
    before = scheduled(server)
    with running(call) as future:
        eventually(lambda: future.done() or scheduled(server) >= before + 6, "children run")
        assert not future.done(), future.result()
        yield future


def serves(server: Server, rid: str | None = None) -> None:
    """A new request, under the same id, is answered."""
    body: dict[str, Any] = {"text": PROMPT, "sampling_params": {"max_new_tokens": 8, "custom_params": QUICK}}
    response = post(server, "/generate", {**body, **({} if rid is None else {"rid": rid})})
    assert response.status_code == httpx.codes.OK, response.text
    assert response.json()["meta_info"]["finish_reason"]["type"] in ("stop", "length")


# --- /abort_request ---


def test_abort_returns_what_there_was(pivot_server: Server) -> None:
    with mid_chain(pivot_server, lambda: post(pivot_server, "/generate", body_of("abort-me"))) as call:
        abort(pivot_server, rid="abort-me")
        response = call.result()
    assert response.status_code == httpx.codes.OK, response.text
    answer = response.json()
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert answer["meta_info"]["id"] == "abort-me"
    assert answer["output_ids"], "the first block was drawn before the children that were aborted"
    assert (power_of(answer)["sampler"], power_of(answer)["stopped_by"]) == ("power", "abort")
    assert power_of(answer)["law"] == "approximate"
    quiet(pivot_server)
    serves(pivot_server, "abort-me")


def test_abort_of_a_stream_ends_it(pivot_server: Server) -> None:
    body = body_of("abort-stream", stream=True)
    with mid_chain(pivot_server, lambda: list(sse_lines(pivot_server, "/generate", body))) as call:
        abort(pivot_server, rid="abort-stream")
        got = call.result()
    assert got[-1] == "data: [DONE]"
    assert '"type":"abort"' in got[-2]
    quiet(pivot_server)
    serves(pivot_server)


@pytest.mark.parametrize("stream", [False, True])
def test_abort_through_openai(pivot_server: Server, stream: bool) -> None:
    rid = f"abort-chat-{stream}"

    def ask() -> Any:
        extra = {"custom_params": LONG, "ignore_eos": True, "rid": rid}
        response = client(pivot_server).chat.completions.create(
            model="pivot", messages=MESSAGES, max_tokens=96, stream=stream, extra_body=extra
        )
        return list(response) if stream else response

    with mid_chain(pivot_server, ask) as call:
        abort(pivot_server, rid=rid)
        got = call.result()
    last = [chunk for chunk in got if chunk.choices][-1] if stream else got
    assert last.choices[0].finish_reason == "abort"
    assert reports(last)[0]["stopped_by"] == "abort"
    quiet(pivot_server)


def test_abort_all_ends_every_chain_of_every_request(pivot_server: Server) -> None:
    each = {**ENDLESS, "n": 2}
    calls = [
        functools.partial(post, pivot_server, "/generate", body_of(f"all-{i}", sampling_params=each))
        for i in range(3)
    ]
    with mid_chain(pivot_server, lambda: together(calls)) as call:
        abort(pivot_server, abort_all=True)
        responses = call.result()
    answers = [answer for response in responses for answer in response.json()]
    assert len(answers) == 6
    assert {answer["meta_info"]["finish_reason"]["type"] for answer in answers} == {"abort"}
    quiet(pivot_server)
    serves(pivot_server, "all-1")


def test_abort_of_one_leaves_the_others_alone(pivot_server: Server) -> None:
    alone = generate(pivot_server, seed=60, steps=6)["text"]
    with mid_chain(pivot_server, lambda: post(pivot_server, "/generate", body_of("first"))) as call:
        with running(lambda: generate(pivot_server, seed=60, steps=6)["text"]) as other:
            abort(pivot_server, rid="first")
            assert other.result() == alone
        assert call.result().json()["meta_info"]["finish_reason"]["type"] == "abort"
    quiet(pivot_server)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("custom", [LONG, {"sampler": "best_of", "samples": 2, "base": LONG}])
def test_abort_by_the_clients_id_ends_all_of_its_answers(
    pivot_server: Server, custom: dict[str, Any], stream: bool
) -> None:
    """SGLang names the samples of "several" by ids of their own, and ignores an abort of "several"."""
    params = {**ENDLESS, "n": 3, "custom_params": custom}
    rid = f"several-{custom['sampler']}-{stream}"
    body = body_of(rid, sampling_params=params, stream=stream)
    with mid_chain(pivot_server, functools.partial(answers_to, pivot_server, body)) as call:
        abort(pivot_server, rid=rid)
        answers = call.result()
    assert [answer["meta_info"]["finish_reason"]["type"] for answer in answers] == ["abort"] * 3
    assert {power_of(answer)["sampler"] for answer in answers} == {custom["sampler"]}
    quiet(pivot_server)


def answers_to(server: Server, body: dict[str, Any]) -> list[Any]:
    """All answers, streamed or not."""
    if not body.get("stream"):
        whole: list[Any] = post(server, "/generate", body).json()
        return whole
    return list({chunk["index"]: chunk for chunk in events(server, "/generate", body)}.values())


def test_abort_by_the_clients_id_ends_all_rows_of_a_policy(pivot_server: Server) -> None:
    """It comes before any of them has drawn a token."""
    rid, params = "rows", {"max_new_tokens": 200, "ignore_eos": True, "n": 3, "custom_params": SIGMA}
    with standstill(pivot_server) as resume:
        body = body_of(rid, sampling_params=params)
        with running(functools.partial(post, pivot_server, "/generate", body)) as call:
            eventually(lambda: active(pivot_server) == 1, "it is there")
            abort(pivot_server, rid=rid)
            resume()
            while not call.done():
                abort(pivot_server, rid=rid)
            answers = call.result().json()
    assert len(answers) == 3
    for answer in answers:
        assert answer["meta_info"]["finish_reason"]["type"] == "abort"
        assert len(answer["output_ids"]) < 200
        assert power_of(answer)["sampler"] == "top_n_sigma"
    quiet(pivot_server)
    serves(pivot_server, rid)


def test_abort_of_a_request_leaves_those_alone_whose_ids_begin_alike(pivot_server: Server) -> None:
    """The scheduler reads an id that is aborted as a prefix."""
    one, ten = (functools.partial(post, pivot_server, "/generate", body_of(f"alike{i}")) for i in (1, 10))
    with mid_chain(pivot_server, one) as first, mid_chain(pivot_server, ten) as second:
        abort(pivot_server, rid="alike1")
        assert first.result().json()["meta_info"]["finish_reason"]["type"] == "abort"
        before = scheduled(pivot_server)
        eventually(lambda: second.done() or scheduled(pivot_server) > before + 6, "the other goes on")
        assert not second.done()
        abort(pivot_server, rid="alike10")
    quiet(pivot_server)


def test_every_prompt_of_a_list_keeps_its_id(pivot_server: Server) -> None:
    """Plain prompts beside samplers, too."""
    plain, short = {"max_new_tokens": 8}, {"max_new_tokens": 8, "custom_params": QUICK}
    each = {"mine": short, "yours": plain, "ours": {"max_new_tokens": 8, "custom_params": SIGMA}}
    body = {"text": [PROMPT] * 3, "rid": list(each), "sampling_params": list(each.values())}
    answers = post(pivot_server, "/generate", body).json()
    assert [answer["meta_info"]["id"] for answer in answers] == list(each)


def test_abort_by_the_id_of_a_list_ends_all_of_its_prompts(pivot_server: Server) -> None:
    body = {
        "text": [PROMPT] * 2,
        "rid": "list",
        "sampling_params": [ENDLESS, {**ENDLESS, "ignore_eos": False}],
    }
    with mid_chain(pivot_server, functools.partial(answers_to, pivot_server, body)) as call:
        abort(pivot_server, rid="list")
        answers = call.result()
    assert [answer["meta_info"]["finish_reason"]["type"] for answer in answers] == ["abort"] * 2
    quiet(pivot_server)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("custom", [QUICK, SIGMA])
def test_a_list_of_ids_for_a_single_prompt_is_refused(
    pivot_server: Server, custom: dict[str, Any], stream: bool
) -> None:
    params = {"max_new_tokens": 8, "custom_params": custom}
    body = {"text": PROMPT, "rid": ["one"], "stream": stream, "sampling_params": params}
    response = post(pivot_server, "/generate", body)
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert "rid=['one']" in response.text


def test_abort_of_a_request_that_waits_for_its_turn(pivot_server: Server) -> None:
    """Eight power requests may run at once here (server.yaml); the ninth has drawn nothing yet."""
    taken = threading.Barrier(8 + 1)

    def in_front(number: int) -> None:
        """A stream says nothing before it has its place."""
        lines = sse_lines(pivot_server, "/generate", body_of(f"front-{number}", stream=True))
        next(lines)
        taken.wait(WAIT_S)
        list(lines)

    with running(lambda: together([functools.partial(in_front, number) for number in range(8)])) as front:
        taken.wait(WAIT_S)
        with running(lambda: post(pivot_server, "/generate", body_of("waiting"))) as waiting:
            # Its id is known as soon as it waits: until then SGLang ignores an abort of it.
            while not waiting.done():
                abort(pivot_server, rid="waiting")
            answer = waiting.result().json()
        for i in range(8):
            abort(pivot_server, rid=f"front-{i}")
        front.result()
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    assert (answer["text"], answer["output_ids"]) == ("", [])
    quiet(pivot_server)
    serves(pivot_server, "waiting")


# --- clients that leave ---


@pytest.mark.parametrize("path", ["/generate", "/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_stops_its_chain(pivot_server: Server, path: str, stream: bool) -> None:
    rid = f"gone-{path.count('/')}-{stream}"
    if path == "/generate":
        body = body_of(rid, stream=stream)
    else:
        body = {"model": "pivot", "max_tokens": 96, "ignore_eos": True, "stream": stream, "rid": rid}
        body |= {"prompt": PROMPT} if "chat" not in path else {"messages": MESSAGES}
        body["custom_params"] = LONG
    ready = threading.Event()
    with mid_chain(pivot_server, lambda: leave(pivot_server, path, body, ready)):
        ready.set()
    quiet(pivot_server)
    serves(pivot_server, None if stream else rid)


def test_places_of_lost_clients_are_free_again(pivot_server: Server) -> None:
    """More clients leave than there are places (eight)."""
    ready = threading.Event()
    calls = [functools.partial(leave, pivot_server, "/generate", body_of(), ready) for _ in range(12)]
    with mid_chain(pivot_server, lambda: together(calls)):
        ready.set()
    quiet(pivot_server)
    together([functools.partial(serves, pivot_server) for _ in range(9)])


# --- a full queue ---


def test_a_full_queue_delays_children_and_fails_nobody(default_server: Server) -> None:
    """Two requests run and two wait in this scheduler; six chains retry until their children fit."""
    calls = [functools.partial(generate, default_server, seed=seed, steps=3) for seed in range(6)]
    answers = together(calls)
    assert {answer["meta_info"]["finish_reason"]["type"] for answer in answers} <= {"stop", "length"}
    assert {power_of(answer)["stopped_by"] for answer in answers} == {"completed"}


# --- shutdown ---


@pytest.mark.long
def test_sigterm_lets_chains_finish_and_leaves_no_process(tmp_path: Path) -> None:
    spec = ServerSpec(PIVOT_MODEL, "terminated", ["--page-size", "1", "--enable-metrics"])
    with servers.running(spec, tmp_path) as server:
        chain = {**QUICK, "seed": 61, "steps": 6, "early_rejection": False}
        params = {"max_new_tokens": 64, "ignore_eos": True, "custom_params": chain}
        body = {"text": PROMPT, "sampling_params": params}
        whole = functools.partial(post, server, "/generate", body)

        def streamed() -> list[str]:
            return list(sse_lines(server, "/generate", {**body, "stream": True}))

        with mid_chain(server, lambda: together([whole, streamed])) as calls:
            os.kill(server.pid, signal.SIGTERM)
            response, lines = calls.result()
        assert response.status_code == httpx.codes.OK, response.text
        answer = response.json()
        assert power_of(answer)["stopped_by"] == "completed"
        assert len(answer["output_ids"]) == 64
        assert lines[-1] == "data: [DONE]"
        assert '"stopped_by":"completed"' in lines[-2]
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        eventually(lambda: not alive(server.pid), "every process of the server has ended")
        assert "Traceback" not in server.log_text()


def alive(group: int) -> bool:
    """Whether a process group has a member that is not a zombie."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False
