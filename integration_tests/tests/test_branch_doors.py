"""`branch` at every door: OpenAI clients, streams, metrics, aborts, clients that leave, bad input."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from integration_tests.helpers.clients import (
    MESSAGES,
    PROMPT,
    PROMPT_Q,
    abort,
    client,
    events,
    eventually,
    leave,
    metric,
    post,
    power_of,
    quiet,
    raw_generate,
    reports,
    running,
    scheduled,
)
from integration_tests.server import Server
from integration_tests.tests.test_branch_server import TREE, Json, ask, params, shape

pytestmark = pytest.mark.server

# --- doors --------------------------------------------------------------------------------------------


def test_openai_clients_get_the_answer_and_its_report(pivot_server: Server) -> None:
    expected = ask(pivot_server)["text"]
    extra = {"custom_params": {"sampler": "branch"}}
    whole: Json = {"model": "pivot", "max_tokens": 48, "extra_body": extra}
    chat = client(pivot_server).chat.completions.create(messages=MESSAGES, **whole)
    completion = client(pivot_server).completions.create(prompt=PROMPT, n=2, **whole)
    assert chat.choices[0].message.content == expected
    assert [choice.text for choice in completion.choices] == [expected, expected]
    assert [one["sampler"] for one in (*reports(chat), *reports(completion))] == ["branch"] * 3
    chunks = list(client(pivot_server).chat.completions.create(messages=MESSAGES, stream=True, **whole))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert reports(chunks[-1])[0]["sampler"] == "branch"


def test_several_prompts_and_answers(pivot_server: Server) -> None:
    other = PROMPT_Q
    each = params(return_tree=True)
    answers = raw_generate(pivot_server, [PROMPT, other], sampling_params=[each, each])
    assert [one["text"] for one in answers] == [ask(pivot_server, one)["text"] for one in (PROMPT, other)]
    pair = ask(pivot_server, sampling={"n": 2}, **TREE)
    assert [shape(one) for one in pair] == [shape(ask(pivot_server, **TREE))] * 2
    assert [power_of(one).get("copy_of") for one in pair] == [None, 0]
    assert power_of(pair[0])["decoded_tokens"] == power_of(ask(pivot_server, **TREE))["decoded_tokens"]
    assert [power_of(pair[1])[name] for name in ("children", "decoded_tokens", "prefilled_tokens")] == [0] * 3


def test_answers_are_counted_in_the_metrics(pivot_server: Server) -> None:
    before = metric(pivot_server, "sglang_power_requests_total", sampler="branch")
    ask(pivot_server)
    assert metric(pivot_server, "sglang_power_requests_total", sampler="branch") == before + 1


@pytest.mark.parametrize("search", [{}, {"policy": "beam", "beam": 2}, TREE], ids=str)
def test_streams_carry_what_is_certain(pivot_server: Server, search: Json) -> None:
    """Text only grows and is never taken back; a lookahead is certain of a branch as soon as it has won."""
    body = {"text": PROMPT, "stream": True, "sampling_params": params(**search)}
    chunks = events(pivot_server, "/generate", body)
    whole = ask(pivot_server, **search)
    texts = [chunk["text"] for chunk in chunks]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert (texts[-1], chunks[-1]["output_ids"]) == (whole["text"], whole["output_ids"])
    counts = [power_of(chunk)["progress"]["tokens"] for chunk in chunks[:-1]]
    assert counts == sorted(set(counts))
    assert all(power_of(chunk)["sampler"] == "branch" for chunk in chunks)
    assert (len(chunks) > 2) == (search != TREE), "leaves of a tree differ from the first fork on"


# --- requests that end early --------------------------------------------------------------------------

SEARCHING: Json = {"policy": "tree", "threshold": 0.0, "max_branches": 1024, "min_gap": 20}
"""Hundreds of paths, none of which has ended before the abort."""

REFINING: Json = {
    "policy": "tree",
    "max_depth": 1,
    "refine": {"sampler": "power", "steps": 2000, "early_rejection": False},
}
"""Leaves that are there early, and are refined for long."""


def endless(branch: Json, **fields: Any) -> Json:
    """The body of a request that runs until it is stopped."""
    return {
        "text": PROMPT,
        "sampling_params": params({"max_new_tokens": 200, "ignore_eos": True}, **branch),
        **fields,
    }


@contextmanager
def midway(server: Server, call: Callable[[], Any]) -> Iterator[Future[Any]]:
    """A call in the background, once the search is over or well under way."""
    before = scheduled(server)
    with running(call) as future:
        eventually(lambda: future.done() or scheduled(server) >= before + 12, "children run")
        assert not future.done(), future.result()
        yield future


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("branch", [SEARCHING, REFINING], ids=["searching", "refining"])
def test_an_abort_returns_the_leaves_there_are(pivot_server: Server, branch: Json, stream: bool) -> None:
    # Two seconds after a stream SGLang aborts its rid once more: a request of the same rid would be hit.
    rid = f"branch-abort-{branch is REFINING}-{stream}"
    body = endless(branch, rid=rid, stream=stream)
    request = functools.partial(events if stream else post, pivot_server, "/generate", body)
    with midway(pivot_server, request) as call:
        abort(pivot_server, rid=rid)
        got = call.result()
    answer = got[-1] if stream else got.json()
    assert answer["meta_info"]["finish_reason"]["type"] == "abort"
    power = power_of(answer)
    assert (power["sampler"], power["stopped_by"]) == ("branch", "abort")
    assert len(answer["output_ids"]) == (200 if branch is REFINING else 0)
    quiet(pivot_server)
    assert ask(pivot_server)["meta_info"]["finish_reason"]["type"] == "stop"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_client_that_leaves_stops_every_child(pivot_server: Server, stream: bool) -> None:
    """The whole search would be more children than branches."""
    ready, before = threading.Event(), scheduled(pivot_server)
    body = endless(SEARCHING, rid=f"branch-gone-{stream}", stream=stream)
    with midway(pivot_server, functools.partial(leave, pivot_server, "/generate", body, ready)):
        ready.set()
    quiet(pivot_server)
    assert scheduled(pivot_server) - before < SEARCHING["max_branches"]
    assert ask(pivot_server)["meta_info"]["finish_reason"]["type"] == "stop"


def test_a_deadline_returns_what_there_is(pivot_server: Server) -> None:
    body = endless({**SEARCHING, "deadline_ms": 300})
    answer = post(pivot_server, "/generate", body).json()
    assert power_of(answer)["stopped_by"] == "deadline_ms"
    assert answer["output_ids"]
    quiet(pivot_server)


def test_openai_clients_get_openai_errors(pivot_server: Server) -> None:
    extra = {"custom_params": {"sampler": "branch", "branch_k": 1}}
    with pytest.raises(openai.BadRequestError, match="branch_k=1: "):
        client(pivot_server).chat.completions.create(model="pivot", messages=MESSAGES, extra_body=extra)


# --- bad input ----------------------------------------------------------------------------------------

BAD: list[tuple[Json, str]] = [
    ({"trigger": "surprise"}, "trigger='surprise'"),
    ({"trigger": ["entropy", 3]}, "trigger=['entropy', 3]"),
    ({"trigger": "entropix_low_low"}, "threshold=None"),
    ({"threshold": [[0.5]]}, "threshold=[[0.5]]"),
    ({"threshold": "high"}, "threshold='high'"),
    ({"trigger": "ratio", "threshold": 1.0}, "threshold=1.0"),
    ({"branch_k": 1}, "branch_k=1"),
    ({"branch_k": 4, "max_branches": 3}, "max_branches=3"),
    ({"policy": "tree", "beam": 2}, "beam=2"),
    ({"policy": "beam", "lookahead_tokens": 2}, "lookahead_tokens=2"),
    ({"score": "vote"}, "score='vote'"),
    ({"score": "reward"}, "reward=None"),
    ({"score": "reward", "reward": "nobody"}, "reward='nobody'"),
    ({"score": "self_evaluation"}, "score='self_evaluation'"),
    ({"policy": "tree", "score": "vote", "equivalence": "llm"}, "equivalence='llm'"),
    ({"equivalence": "same"}, "equivalence='same'"),
    ({"answer": "regex", "answer_regex": "(a"}, "answer_regex='(a'"),
    ({"alpha": 2.0}, "alpha=2.0"),
    ({"refine": {"sampler": "cot"}}, "refine.sampler='cot'"),
    ({"refine": {"sampler": "power", "steps": 0}}, "refine.steps=0"),
    ({"continuation_policy": {"sampler": "top_n_sigma", "n": 0}}, "continuation_policy.n=0"),
    (
        {"continuation_policy": {"sampler": "kl_guided", "prompt_without": "R"}},
        "continuation_policy.sampler=",
    ),
    ({"max_total_tokens": 47}, "max_total_tokens=47"),
    ({"max_total_tokens": 10**9}, "max_total_tokens=1000000000"),
    ({"lookahead": 3}, "lookahead=3"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("branch", "named"), BAD, ids=[named for _, named in BAD])
def test_bad_requests_are_400_before_any_token(
    pivot_server: Server, branch: Json, named: str, stream: bool
) -> None:
    before = scheduled(pivot_server)
    body = {"text": PROMPT, "sampling_params": params(**branch), "stream": stream}
    response = post(pivot_server, "/generate", body)
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    assert named in response.text
    assert scheduled(pivot_server) == before


@pytest.mark.parametrize("sampling", [{"n": 17}, {"stop_regex": "A."}], ids=str)
def test_what_the_server_does_not_support_is_400(pivot_server: Server, sampling: Json) -> None:
    before = scheduled(pivot_server)
    response = post(pivot_server, "/generate", {"text": PROMPT, "sampling_params": params(sampling)})
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    assert f"{next(iter(sampling))}=" in response.text
    assert scheduled(pivot_server) == before
