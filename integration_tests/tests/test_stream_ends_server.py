"""What the readers of streams put together, and how streams end: texts, log probabilities, errors.

On servers that stream whole texts so far, SGLang's default, and on one that streams deltas.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from integration_tests import server
from integration_tests.helpers import preloaded
from integration_tests.helpers.clients import HTTP, MESSAGES, PROMPT, QUICK, events, post, sse_lines, together
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec
from integration_tests.tests.conftest import TEST_CONFIG

pytestmark = pytest.mark.server

Json = dict[str, Any]

TOKENS = 32
SEED: Json = {"seed": 40}
LOOKBACK: Json = {**QUICK, **SEED, "block_size": 4, "lookback_blocks": 1}
BRANCH: Json = {"sampler": "branch", "threshold": 0.0, "max_depth": 2, "answer": "text"}
SAMPLERS: dict[str, Json] = {
    "power": {**QUICK, **SEED},
    "lookback": LOOKBACK,
    "vote": {"sampler": "vote", "samples": 3, "answer": "text", **SEED},
    "cot": {"sampler": "cot", "k": 3, "answer": "text"},
    "best_of": {"sampler": "best_of", "samples": 3, "answer": "text", **SEED},
    "branch": BRANCH,
    "kl_guided": {"sampler": "kl_guided", "prompt_without": "R7:", "sigma": 0.5, **SEED},
    "top_n_sigma": {"sampler": "top_n_sigma", **SEED},
}


@pytest.fixture(scope="module")
def incremental_server(logs: Path) -> Iterator[Server]:
    """The pivot model; streams carry deltas."""
    arguments = ["--page-size", "1", "--incremental-streaming-output"]
    spec = ServerSpec(PIVOT_MODEL, "incremental", arguments, {"SGLANG_POWER_CONFIG": str(TEST_CONFIG)})
    with server.running(spec, logs, preloaded.fork) as running:
        yield running


@pytest.fixture(params=["cumulative", "incremental"])
def streaming(request: pytest.FixtureRequest) -> Server:
    """A server of either kind."""
    name = {"cumulative": "pivot_server", "incremental": "incremental_server"}[request.param]
    found: Server = request.getfixturevalue(name)
    return found


# --- Ollama's routes ----------------------------------------------------------------------------------


def ollama_body(path: str, custom: Json, **fields: Any) -> Json:
    """By these routes streams are the default."""
    asked: Json = {"messages": MESSAGES} if path == "/api/chat" else {"prompt": PROMPT}
    return {"model": "pivot", **asked, "options": {"num_predict": TOKENS}, "custom_params": custom, **fields}


def ollama_lines(server: Server, path: str, body: Json) -> list[Json]:
    with HTTP.stream("POST", server.url + path, json=body) as response:
        assert response.status_code == httpx.codes.OK, response.read()
        return [json.loads(line) for line in response.iter_lines() if line]


def said_in(line: Json) -> str:
    return str(line["message"]["content"] if "message" in line else line["response"])


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_ollamas_streams_have_the_whole_text(streaming: Server, path: str) -> None:
    def check(custom: Json) -> None:
        whole = post(streaming, path, ollama_body(path, custom, stream=False))
        assert whole.status_code == httpx.codes.OK, whole.text
        lines = ollama_lines(streaming, path, ollama_body(path, custom))
        assert "".join(map(said_in, lines)) == said_in(whole.json()) != "", custom
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]

    together([functools.partial(check, custom) for custom in SAMPLERS.values()])


# --- log probabilities --------------------------------------------------------------------------------

STOPS = [None, ["zzzzzzzzzzzz"], ["zzzz", ";"], [";A", "=0;w", "g4;g"]]
"""Text is held back for the longest of them, whether or not it comes."""


def streamed(server: Server, path: str, custom: Json, n: int, stop: Any) -> list[Any]:
    """[choice] the log probabilities of all chunks, as (token's text, value) or by values alone."""
    fields: Json = {"n": n, "stop": stop, "max_tokens": TOKENS, "custom_params": custom, "stream": True}
    asked: Json = {"prompt": PROMPT, "logprobs": 2}
    if "chat" in path:
        asked = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
    found: list[list[float]] = [[] for _ in range(n)]
    for event in events(server, path, {"model": "pivot", **asked, **fields}):
        for choice in event["choices"]:
            logprobs = choice.get("logprobs") or {}
            entries = logprobs.get("content") or []
            assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
            values = [entry["logprob"] for entry in entries]
            found[choice["index"]] += values + (logprobs.get("token_logprobs") or [])
    return found


def in_generate(server: Server, custom: Json, n: int, stop: Any) -> tuple[list[Any], list[Any]]:
    """[choice] the log probabilities of a whole answer, and those that its stream has."""
    params = {"max_new_tokens": TOKENS, "n": n, "stop": stop, "custom_params": custom}
    body = {"text": PROMPT, "sampling_params": params, "return_logprob": True, "top_logprobs_num": 2}
    whole = post(server, "/generate", body).json()
    values = [
        [entry[0] for entry in answer["meta_info"]["output_token_logprobs"]]
        for answer in (whole if isinstance(whole, list) else [whole])
    ]
    found: list[list[float]] = [[] for _ in range(n)]
    for event in events(server, "/generate", {**body, "stream": True}):
        meta, index = event["meta_info"], event["index"]
        entries = [entry[0] for entry in meta["output_token_logprobs"]]
        assert len(meta["output_top_logprobs"]) == len(entries) == len(event["output_ids"])
        found[index] = found[index] + entries if server.name == "incremental" else entries
    return values, found


@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.long), 2])
@pytest.mark.parametrize("stop", STOPS, ids=str)
def test_streams_have_every_log_probability(streaming: Server, stop: Any, n: int) -> None:
    """Stops included, which have no text."""

    def check(custom: Json) -> None:
        whole, by_generate = in_generate(streaming, custom, n, stop)
        assert all(len(values) > 0 for values in whole)
        assert by_generate == [pytest.approx(values, abs=1e-3) for values in whole], custom
        for path in ("/v1/chat/completions", "/v1/completions"):
            found = streamed(streaming, path, custom, n, stop)
            assert [len(values) for values in found] == [len(values) for values in whole], (path, custom)
            assert found == [pytest.approx(values, abs=1e-3) for values in whole], (path, custom)

    together([functools.partial(check, custom) for custom in SAMPLERS.values()])


# --- statistics of rows ---


@pytest.mark.parametrize("n", [1, 2])
def test_deltas_of_statistics_add_up(incremental_server: Server, n: int) -> None:
    """On /generate a chunk has those of its own tokens; the last chunk of OpenAI's streams has all."""
    sampling: Json = {"max_new_tokens": TOKENS, "temperature": 0, "n": n, "return_statistics": True}
    whole = post(incremental_server, "/generate", {"text": PROMPT, "sampling_params": sampling}).json()
    wanted = [answer["meta_info"]["power"]["statistics"] for answer in (whole if n > 1 else [whole])]
    found: list[Json] = [{name: [] for name in wanted[0]} for _ in range(n)]
    body = {"text": PROMPT, "stream": True, "sampling_params": sampling}
    for event in events(incremental_server, "/generate", body):
        for name, values in event["meta_info"]["power"]["statistics"].items():
            assert len(values) == len(event["output_ids"])
            found[event.get("index", 0)][name] += values
    asked: Json = {"model": "pivot", "max_tokens": TOKENS, "temperature": 0, "n": n, "stream": True}
    told = []
    for path, prompt in (("completions", {"prompt": PROMPT}), ("chat/completions", {"messages": MESSAGES})):
        chunks = events(incremental_server, f"/v1/{path}", {**asked, **prompt, "return_statistics": True})
        last = [chunk for chunk in chunks if chunk["choices"]][-1]
        told.append([report["statistics"] for report in last["metadata"]["power"]])
    for each in (found, *told):
        for columns, expected in zip(each, wanted, strict=True):
            for name, values in expected.items():
                assert columns[name] == pytest.approx(values, abs=1e-3)


# --- late errors --------------------------------------------------------------------------------------

UNWEIGHTED: Json = {
    "sampler": "vote",
    "samples": 2,
    "answer": "text",
    "weight": "power",
    "base": {**QUICK, "block_size": 4, "max_steps": 1},
}
"""Known once all samples are there: none of them has the law of its base."""

GONE: Json = {**QUICK, **SEED, "reward": "gone", "reward_weight": 1.0}
"""Known once the first whole answer is scored, behind some progress."""


def body_for(path: str, custom: Json) -> Json:
    if path == "/generate":
        params = {"max_new_tokens": TOKENS, "custom_params": custom}
        return {"text": PROMPT, "stream": True, "sampling_params": params}
    if path == "/vertex_generate":
        parameters = {"stream": True, "sampling_params": {"max_new_tokens": TOKENS, "custom_params": custom}}
        return {"instances": [{"text": PROMPT}], "parameters": parameters}
    asked: Json = {"prompt": PROMPT} if path == "/v1/completions" else {"messages": MESSAGES}
    return {"model": "pivot", **asked, "max_tokens": TOKENS, "stream": True, "custom_params": custom}


@pytest.mark.parametrize(("custom", "message"), [(UNWEIGHTED, "weight="), (GONE, "reward 'gone'")])
@pytest.mark.parametrize("path", ["/generate", "/vertex_generate", "/v1/chat/completions", "/v1/completions"])
def test_a_late_error_is_an_event_and_the_stream_ends(
    pivot_server: Server, path: str, custom: Json, message: str
) -> None:
    body = body_for(path, custom)
    first = post(pivot_server, path, body)
    if first.status_code != httpx.codes.OK:  # nothing had been sent: OpenAI's routes say so by their status
        assert first.status_code == httpx.codes.BAD_REQUEST
        assert path.startswith("/v1/")
        assert message in first.text
        return
    lines = [line for line in sse_lines(pivot_server, path, body) if not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    last = json.loads(lines[-2].removeprefix("data: "))
    reason = last["error"] if "error" in last else last["meta_info"]["finish_reason"]
    assert message in reason["message"]
    assert reason.get("code", reason.get("status_code")) == (400 if custom is UNWEIGHTED else 502)


@pytest.mark.parametrize(("custom", "message"), [(UNWEIGHTED, "weight="), (GONE, "reward 'gone'")])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_late_error_is_the_last_line_of_ollamas_streams(
    pivot_server: Server, path: str, custom: Json, message: str
) -> None:
    lines = ollama_lines(pivot_server, path, ollama_body(path, custom))
    assert message in lines[-1]["error"]
    assert not any(line["done"] for line in lines[:-1])
    whole = post(pivot_server, path, ollama_body(path, custom, stream=False))
    assert whole.status_code == (400 if custom is UNWEIGHTED else 502)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_bad_request_for_a_stream_of_ollamas_is_a_400(pivot_server: Server, path: str) -> None:
    response = post(pivot_server, path, ollama_body(path, {**QUICK, "alpha": 0.5}))
    assert response.status_code == httpx.codes.BAD_REQUEST, response.text
    assert "alpha=0.5" in response.text


def test_messages_end_with_an_error_too(pivot_server: Server) -> None:
    body = {"model": "pivot", "messages": MESSAGES, "max_tokens": TOKENS, "stream": True}
    for custom in (UNWEIGHTED, GONE):
        lines = list(sse_lines(pivot_server, "/v1/messages", {**body, "custom_params": custom}))
        assert "event: error" in lines, lines[-4:]
