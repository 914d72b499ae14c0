"""Streams, read the way stock clients read them.

A chain may revise earlier tokens, so a stream carries text only once it is final: at the end, or block by
block with `lookback_blocks`. Meanwhile it carries progress.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import sglang as sgl
from sglang.lang.interpreter import ProgramState

from integration_tests.helpers.clients import (
    MESSAGES,
    POWER_FIELDS,
    PROMPT,
    QUICK,
    client,
    events,
    generate,
    power_of,
    sse_lines,
)
from integration_tests.server import Server

pytestmark = pytest.mark.server

SEEDED: dict[str, Any] = {**QUICK, "seed": 40}
SLOW: dict[str, Any] = {**SEEDED, "steps": 8, "early_rejection": False}
"""Progress is sent at the first step and five times a second at most."""

COMMITTING: dict[str, Any] = {**SEEDED, "block_size": 4, "lookback_blocks": 1}


def chat_body(custom_params: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A streaming chat request as JSON."""
    body = {"model": "pivot", "messages": MESSAGES, "max_tokens": 64, "stream": True}
    return {**body, "custom_params": custom_params, **fields}


def completion_body(custom_params: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A streaming completion request as JSON."""
    body = {"model": "pivot", "prompt": PROMPT, "max_tokens": 64, "stream": True}
    return {**body, "custom_params": custom_params, **fields}


def generate_body(custom_params: dict[str, Any], **sampling: Any) -> dict[str, Any]:
    """A streaming /generate request as JSON."""
    params = {"max_new_tokens": 64, "custom_params": custom_params, **sampling}
    return {"text": PROMPT, "stream": True, "sampling_params": params}


# --- the stock openai client ---


def test_the_usual_chat_loop(pivot_server: Server) -> None:
    stream = client(pivot_server).chat.completions.create(
        model="pivot", messages=MESSAGES, max_tokens=64, stream=True, extra_body={"custom_params": SEEDED}
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == generate(pivot_server, max_new_tokens=64, seed=40)["text"]


def test_the_usual_completion_loop(pivot_server: Server) -> None:
    stream = client(pivot_server).completions.create(
        model="pivot", prompt=PROMPT, max_tokens=64, stream=True, extra_body={"custom_params": SEEDED}
    )
    text = "".join(chunk.choices[0].text or "" for chunk in stream)
    assert text == generate(pivot_server, max_new_tokens=64, seed=40)["text"]


def test_the_usual_loop_over_a_long_chain_with_the_sampler_named_at_the_top(pivot_server: Server) -> None:
    """Progress runs meanwhile: neither an event nor a chunk of it may reach this loop."""
    stream = client(pivot_server).chat.completions.create(
        model="pivot", messages=MESSAGES, max_tokens=64, stream=True, seed=41, extra_body={"sampler": "power"}
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len([piece for piece in pieces if piece]) == 1, "text comes once, when it is final"


@pytest.mark.parametrize("chains", [1, 2])
def test_two_answers_and_usage(pivot_server: Server, chains: int) -> None:
    stream = client(pivot_server).chat.completions.create(
        model="pivot",
        messages=MESSAGES,
        max_tokens=64,
        stream=True,
        n=chains,
        stream_options={"include_usage": True},
        extra_body={"custom_params": SEEDED},
    )
    texts, finished, usages = [""] * chains, [""] * chains, []
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finished[choice.index] = choice.finish_reason or finished[choice.index]
        if chunk.usage is not None:
            usages.append(chunk.usage)
    expected = generate(pivot_server, max_new_tokens=64, seed=40, sampling={"n": chains})
    answers = expected if isinstance(expected, list) else [expected]
    assert texts == [answer["text"] for answer in answers]
    assert finished == [answer["meta_info"]["finish_reason"]["type"] for answer in answers]
    assert usages[-1].prompt_tokens == len(PROMPT)
    assert usages[-1].completion_tokens == sum(a["meta_info"]["completion_tokens"] for a in answers)


def test_streamed_logprobs_are_those_of_the_answer(pivot_server: Server) -> None:
    stream = client(pivot_server).chat.completions.create(
        model="pivot",
        messages=MESSAGES,
        max_tokens=64,
        stream=True,
        logprobs=True,
        top_logprobs=2,
        extra_body={"custom_params": SEEDED},
    )
    tokens = [
        token
        for chunk in stream
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or []
    ]
    answer = generate(pivot_server, max_new_tokens=64, seed=40)
    assert len(tokens) == answer["meta_info"]["completion_tokens"]
    log_p = power_of(answer)["log_p"]
    assert sum(token.logprob for token in tokens) == pytest.approx(log_p, abs=1e-3)
    assert [len(token.top_logprobs) for token in tokens] == [2] * len(tokens)


# --- what else is on the wire ---


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat_body(SLOW)),
        ("/v1/completions", completion_body(SLOW)),
        ("/v1/chat/completions", chat_body(SLOW, n=2, stream_options={"include_usage": True})),
        ("/v1/completions", completion_body(COMMITTING, n=2, stream_options={"include_usage": True})),
    ],
)
def test_the_report_is_on_the_last_chunk_with_choices(
    pivot_server: Server, path: str, body: dict[str, Any]
) -> None:
    chunks = [chunk for chunk in events(pivot_server, path, body) if chunk["choices"]]
    assert not any("power" in (chunk.get("metadata") or {}) for chunk in chunks[:-1])
    found = chunks[-1]["metadata"]["power"]
    assert [set(report) for report in found] == [POWER_FIELDS] * body.get("n", 1)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/v1/chat/completions", chat_body(SLOW)), ("/v1/completions", completion_body(SLOW))],
)
def test_progress_comes_as_comments(pivot_server: Server, path: str, body: dict[str, Any]) -> None:
    lines = list(sse_lines(pivot_server, path, body))
    assert all(line.startswith((":", "data: ")) for line in lines), "no named events"
    comments = [line for line in lines if line.startswith(":")]
    assert comments
    notes = [json.loads(line.removeprefix(": sglang-power ")) for line in comments]
    assert all(note.keys() >= {"index", "stage", "stages", "step", "accepted", "tokens"} for note in notes)
    assert [note["step"] for note in notes] == sorted(note["step"] for note in notes)
    assert lines[-1] == "data: [DONE]"


def test_plain_streams_carry_nothing_of_ours(pivot_server: Server) -> None:
    body = chat_body({})
    del body["custom_params"]
    lines = list(sse_lines(pivot_server, "/v1/chat/completions", body))
    assert not any(line.startswith(":") or "power" in line for line in lines)
    plain = {"text": PROMPT, "stream": True, "sampling_params": {"max_new_tokens": 8}}
    assert not any("power" in event["meta_info"] for event in events(pivot_server, "/generate", plain))


# --- /generate ---


@pytest.mark.parametrize("custom_params", [SLOW, COMMITTING])
def test_generate_streams_cumulative_text_and_progress(
    pivot_server: Server, custom_params: dict[str, Any]
) -> None:
    chunks = events(pivot_server, "/generate", generate_body(custom_params))
    last = chunks[-1]
    for chunk in chunks[:-1]:
        assert last["text"].startswith(chunk["text"])
        assert last["output_ids"][: len(chunk["output_ids"])] == chunk["output_ids"]
        assert chunk["meta_info"]["finish_reason"] is None
        assert chunk["meta_info"]["completion_tokens"] == len(chunk["output_ids"])
        assert power_of(chunk)["sampler"] == "power"
        assert power_of(chunk)["progress"].keys() >= {"stage", "stages", "step", "accepted", "tokens"}
    assert len(chunks) > 1
    assert set(power_of(last)) == POWER_FIELDS
    assert last["meta_info"]["finish_reason"]["type"] in ("stop", "length")


def test_generate_streams_n_answers_with_their_index(pivot_server: Server) -> None:
    chunks = events(pivot_server, "/generate", generate_body(SEEDED, n=2))
    texts: dict[int, str] = {chunk["index"]: chunk["text"] for chunk in chunks}
    expected = generate(pivot_server, max_new_tokens=64, seed=40, sampling={"n": 2})
    assert texts == {i: answer["text"] for i, answer in enumerate(expected)}
    assert {chunk["index"] for chunk in chunks if "progress" not in power_of(chunk)} == {0, 1}


def test_generate_streams_a_list_that_mixes_power_and_plain(pivot_server: Server) -> None:
    params = [{"max_new_tokens": 24, "custom_params": SEEDED}, {"max_new_tokens": 24}]
    body = {"text": [PROMPT, PROMPT], "stream": True, "sampling_params": params}
    chunks = events(pivot_server, "/generate", body)
    last: dict[int, Any] = {chunk["index"]: chunk for chunk in chunks}
    assert "power" in last[0]["meta_info"]
    assert not any("power" in chunk["meta_info"] for chunk in chunks if chunk["index"] == 1)
    assert last[0]["text"] == generate(pivot_server, max_new_tokens=24, seed=40)["text"]
    assert all(chunk["meta_info"]["finish_reason"] is not None for chunk in last.values())


# --- lookback_blocks ---


def test_lookback_streams_committed_text(pivot_server: Server) -> None:
    """Of 64 tokens in blocks of four, more than ten grow the text before the end; none is taken back."""
    chunks = events(pivot_server, "/generate", generate_body(COMMITTING, ignore_eos=True))
    texts = list(dict.fromkeys(chunk["text"] for chunk in chunks if chunk["text"]))
    assert len(texts) > 10
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert len(chunks[-1]["output_ids"]) == 64
    assert power_of(chunks[-1])["law"] == "approximate"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_lookback_through_openai(pivot_server: Server, path: str) -> None:
    body = chat_body(COMMITTING) if "chat" in path else completion_body(COMMITTING)
    chunks = events(pivot_server, path, {**body, "ignore_eos": True})
    pieces = [
        choice["text"] if "text" in choice else choice["delta"].get("content") or ""
        for chunk in chunks
        for choice in chunk["choices"]
    ]
    assert len([piece for piece in pieces if piece]) > 10
    sampling = {"ignore_eos": True}
    whole = generate(
        pivot_server, max_new_tokens=64, sampling=sampling, seed=40, block_size=4, lookback_blocks=1
    )
    assert "".join(pieces) == whole["text"]


def test_lookback_never_streams_the_beginning_of_a_stop_string(pivot_server: Server) -> None:
    """Eight seeds; the stop strings end on block boundaries and beyond them."""
    stops = [";A", "=0;w", "g4;g"]
    for seed in range(8):
        body = generate_body({**COMMITTING, "seed": seed, "alpha": 1.5}, stop=stops)
        chunks = events(pivot_server, "/generate", body)
        assert all(chunks[-1]["text"].startswith(chunk["text"]) for chunk in chunks)
        assert not any(stop in chunk["text"] for stop in stops for chunk in chunks)


# --- stock SGLang frontend ---


def test_the_stock_frontend_streams_a_default_sampler(default_server: Server) -> None:
    """`sgl.gen` cannot name a sampler; the served model's default applies to it."""

    @sgl.function  # type: ignore[untyped-decorator]
    def solve(s: ProgramState, problem: str) -> None:
        s += problem
        s += sgl.gen("answer", max_tokens=48)

    state = solve.run(problem=PROMPT, backend=sgl.RuntimeEndpoint(default_server.url), stream=True)
    pieces = list(state.text_iter("answer"))
    assert "".join(pieces) == state["answer"]
    assert state.get_meta_info("answer")["power"]["sampler"] == "power"


def test_the_stock_frontend_without_streaming(default_server: Server) -> None:
    @sgl.function  # type: ignore[untyped-decorator]
    def solve(s: ProgramState) -> None:
        s += PROMPT
        s += sgl.gen("answer", max_tokens=48)

    state = solve.run(backend=sgl.RuntimeEndpoint(default_server.url))
    assert state.get_meta_info("answer")["power"]["sampler"] == "power"
    assert state["answer"]
