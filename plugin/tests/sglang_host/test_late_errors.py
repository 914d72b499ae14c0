"""Errors behind the first chunk of a stream, on SGLang's own routes: an event and an end, never a torn one.

What answers is replaced; SGLang's application and its Ollama servings are real.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncGenerator, AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from route_bodies import GENERATE, OLLAMA, OLLAMA_CHAT, VERTEX, Json, Manager, body_for, send
from sglang.srt.entrypoints import http_server
from sglang.srt.entrypoints.ollama.serving import OllamaServing
from sglang_power import errors
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.tokenizer import ollama, orchestrator
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.openai import StreamNotes, _never_torn, _noted
from sglang_power.sglang_host.tokenizer.plan import PlainPlan

pytestmark = pytest.mark.filterwarnings("ignore::fastapi.exceptions.FastAPIDeprecationWarning")

REFUSED = [
    errors.RequestError("weight", "power", "nothing has one", "Weigh by count"),
    errors.UnsupportedError("weight", "power", "nothing has one", "Weigh by count"),
    errors.LimitError("max_new_tokens", 9, "no room", "Ask for less"),
    errors.ServerSettingsError("tp_size", 2, "not yet", "Leave it out"),
    ValueError("The input is too long"),
]
FAILED: list[tuple[Exception, int]] = [
    (errors.OverloadedError("the queue stayed full"), 503),
    (errors.WeightsChangedError("the weights changed"), 503),
    (errors.RewardError("r", "no score", "Try again"), 502),
    (errors.HostError("a hook is missing"), 500),
    (errors.TooLargeError("a body", 3, "limits"), 500),
    (errors.ConfigError("a file"), 500),
    (errors.RecordError("run", "no trace", "Save it"), 500),
    (HTTPException(503, "timed out in the queue"), 503),
    (RuntimeError("a defect"), 500),
]


def message_of(error: Exception) -> str:
    return str(error.detail) if isinstance(error, HTTPException) else str(error)


def chunk(text: str, reason: Any = None) -> Json:
    meta = {"id": "r", "finish_reason": reason, "prompt_tokens": 1, "completion_tokens": len(text)}
    return {"text": text, "output_ids": [1] * len(text), "meta_info": meta}


class Failing(Manager):
    """Answers with a chunk, and then fails."""

    incremental_streaming_output = False

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def generate_request(self, obj: Any, request: Any) -> AsyncIterator[Json]:
        host = Host(self, lambda *_: None, obj, request, ServerConfig())
        obj.rid = "r"
        obj.sampling_params.pop("seed", None)
        plans = [PlainPlan()]
        served = (
            orchestrator._stream(host, [obj], plans, None)
            if obj.stream
            else orchestrator._collect(host, [obj], plans, single=True)
        )
        async for answer in served:
            yield answer


async def told(monkeypatch: pytest.MonkeyPatch, path: str, error: Exception, **body: Any) -> Any:
    """The response of a route to a request that fails late."""

    async def answers(_: Any, __: Any, ___: Any, emit: Any, index: int) -> list[Json]:
        if emit is not None:
            emit(index, chunk("ab"))
            await asyncio.sleep(0)
        raise error

    manager = Failing(error)
    monkeypatch.setattr(orchestrator, "_answers", answers)
    monkeypatch.setattr(http_server, "_global_state", SimpleNamespace(tokenizer_manager=manager))
    monkeypatch.setattr(http_server.app.state, "ollama_serving", OllamaServing(manager), raising=False)
    for name in ("_stream_chat_response", "_stream_generate_response"):
        own = functools.partialmethod(_hooked, getattr(OllamaServing, name))
        monkeypatch.setattr(OllamaServing, name, own)
    return await send(path, body_for(path, {}, {"stream": True, **body}))


@pytest.mark.parametrize("path", [OLLAMA, OLLAMA_CHAT])
async def test_what_can_be_known_before_a_stream_of_ollamas_is_a_400(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    response = await told(monkeypatch, path, REFUSED[0], sampler="power", alpha=0.5)
    assert response.status_code == 400
    assert "alpha=0.5" in response.text


async def _hooked(serving: Any, original: Any, *args: Any) -> Any:
    return await ollama.stream(original, serving, *args)


@pytest.mark.parametrize("path", [GENERATE, VERTEX])
@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
async def test_what_is_refused_late_is_sglangs_error_event(
    monkeypatch: pytest.MonkeyPatch, path: str, error: Exception
) -> None:
    stream = {"instances": [{"text": "a"}], "parameters": {"stream": True, "sampling_params": {}}}
    response = await told(monkeypatch, path, error, **(stream if path == VERTEX else {}))
    first, last, done = response.text.strip().split("\n\n")
    assert json.loads(first[6:])["text"] == "ab"
    said = json.loads(last[6:])["error"]
    assert (said["message"], said["code"], said["type"]) == (str(error), 400, "invalid_request_error")
    assert done == "data: [DONE]"


@pytest.mark.parametrize("path", [GENERATE, VERTEX])
@pytest.mark.parametrize(("error", "status"), FAILED, ids=lambda value: type(value).__name__)
async def test_what_fails_late_is_sglangs_form_of_a_server_error(
    monkeypatch: pytest.MonkeyPatch, path: str, error: Exception, status: int
) -> None:
    stream = {"instances": [{"text": "a"}], "parameters": {"stream": True, "sampling_params": {}}}
    response = await told(monkeypatch, path, error, **(stream if path == VERTEX else {}))
    _, last, done = response.text.strip().split("\n\n")
    reason = json.loads(last[6:])["meta_info"]["finish_reason"]
    assert reason == {"type": "abort", "message": message_of(error), "status_code": status}
    assert done == "data: [DONE]"


@pytest.mark.parametrize("path", [OLLAMA, OLLAMA_CHAT])
@pytest.mark.parametrize(
    "error", [*REFUSED, *(error for error, _ in FAILED)], ids=lambda error: type(error).__name__
)
async def test_ollamas_streams_end_with_a_line_that_tells_the_error(
    monkeypatch: pytest.MonkeyPatch, path: str, error: Exception
) -> None:
    response = await told(monkeypatch, path, error)
    first, last = map(json.loads, response.text.splitlines())
    assert not first["done"]
    assert last == {"error": message_of(error)}


@pytest.mark.parametrize("path", [OLLAMA, OLLAMA_CHAT])
async def test_ollamas_whole_answers_are_refused_with_400(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    response = await told(monkeypatch, path, REFUSED[1], stream=False)
    assert response.status_code == 400
    assert str(REFUSED[1]) in response.text


# --- OpenAI's streams ---------------------------------------------------------------------------------


class Serving:
    """SGLang's OpenAI servings as far as an error goes."""

    def create_streaming_error_response(self, message: str, kind: str, code: int) -> str:
        return json.dumps({"error": {"message": message, "type": kind, "code": code}})


async def failing(error: Exception, notes: StreamNotes) -> AsyncGenerator[str, None]:
    """SGLang's stream: it has sent nothing yet, so it raises."""
    notes.progress.put_nowait({"step": 1})
    for _ in range(5):
        await asyncio.sleep(0)
    raise error
    yield ""


@pytest.mark.parametrize(
    ("error", "code"), [(REFUSED[1], 400), (errors.HostError("a hook"), 500), (RuntimeError("a"), 500)]
)
async def test_an_error_behind_a_comment_is_an_event_since_the_status_has_been_sent(
    error: Exception, code: int
) -> None:
    notes = StreamNotes()
    lines = _never_torn(_noted(failing(error, notes), notes, Serving()), Serving())
    comment, last, done = [line async for line in lines]
    assert comment.startswith(": sglang-power")
    said = json.loads(last[6:])["error"]
    assert (said["message"], said["code"]) == (str(error), code)
    assert done == "data: [DONE]\n\n"
