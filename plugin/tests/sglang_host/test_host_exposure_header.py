"""The exposure id in the head of a response, on an application that answers as SGLang's does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.testclient import TestClient
from sglang_power.sglang_host.experiments.exposure_header import HEADER, add_exposure_header, tell

SERVICE: Any = SimpleNamespace(may_enrol=lambda path: path in ("/generate", "/v1/chat/completions"))
ID = "0123456789ab4def8123456789abcdef"


async def _pieces(request: Request, exposure: str | None) -> AsyncIterator[bytes]:
    await tell(request, exposure)
    for piece in (b"data: a\n\n", b"data: b\n\n"):
        yield piece


def application(exposure: str | None, *, late: bool) -> FastAPI:
    """Routes that enrol before their head is sent, or after it as SGLang's /generate does for streams.

    Args:
        late: the header is added while the application starts, as in tokenizer workers.
    """

    @asynccontextmanager
    async def lifespan(started: FastAPI) -> AsyncIterator[None]:
        if late:
            add_exposure_header(started, SERVICE)
        yield

    app = FastAPI(lifespan=lifespan)

    @app.middleware("http")
    async def around(request: Request, call_next: Any) -> Any:
        """As SGLang's check of keys, and its metrics."""
        return await call_next(request)

    @app.post("/generate")
    async def generate(request: Request) -> Any:
        if (await request.json())["stream"]:
            return StreamingResponse(_pieces(request, exposure), media_type="text/event-stream")
        await tell(request, exposure)
        return JSONResponse({"text": "ab"})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        pieces = _pieces(request, exposure)
        first = await anext(pieces)

        async def prepended() -> AsyncIterator[bytes]:
            yield first
            async for piece in pieces:
                yield piece

        return StreamingResponse(prepended(), media_type="text/event-stream")

    @app.post("/other")
    async def other(request: Request) -> Any:
        return StreamingResponse(_pieces(request, exposure), media_type="text/event-stream")

    if not late:
        add_exposure_header(app, SERVICE)
    return app


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("exposure", [ID, None])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/other"])
def test_the_head_names_the_exposure(path: str, stream: bool, exposure: str | None, late: bool) -> None:
    with TestClient(application(exposure, late=late)) as client:
        response = client.post(path, json={"stream": stream})
    assert response.status_code == 200
    assert response.headers.get(HEADER) == (None if path == "/other" else exposure)
    if path == "/generate" and not stream:
        assert response.json() == {"text": "ab"}
    else:
        assert response.text == "data: a\n\ndata: b\n\n"


def test_a_refusal_passes_at_once() -> None:
    with TestClient(application(ID, late=False)) as client:
        response = client.get("/generate")
    assert (response.status_code, response.headers.get(HEADER)) == (405, None)


async def _happened(*steps: str) -> list[str]:
    """What the application did and what was sent, in order; a head with the exposure is "head, named"."""
    happened: list[str] = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        head = [(b"Content-Type", b"text/event-stream; charset=utf-8")]
        for step in steps:
            happened.append(step)
            if step == "head":
                await send({"type": "http.response.start", "status": 200, "headers": head})
            elif step == "body":
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            else:
                await tell(SimpleNamespace(scope=scope), ID if step == "enrolled" else None)

    async def send(message: Any) -> None:
        named = HEADER.encode() in dict(message.get("headers", ()))
        kind = "head" if message["type"] == "http.response.start" else "body"
        happened.append(f"sent: {kind}{', named' if named else ''}")

    stack: Any = SimpleNamespace(middleware_stack=app)
    add_exposure_header(stack, SERVICE)
    await stack.middleware_stack({"type": "http", "path": "/generate"}, None, send)
    return happened


@pytest.mark.parametrize(
    ("steps", "happened"),
    [
        (
            ["head", "enrolled", "body"],
            ["head", "enrolled", "sent: head, named", "body", "sent: body"],
        ),
        (["head", "not enrolled", "body"], ["head", "not enrolled", "sent: head", "body", "sent: body"]),
        (["head", "body"], ["head", "body", "sent: head", "sent: body"]),
    ],
    ids=str,
)
async def test_the_head_of_a_stream_waits_for_the_enrolment_and_not_for_a_token(
    steps: list[str], happened: list[str]
) -> None:
    assert await _happened(*steps) == happened


async def test_comments_that_come_while_the_head_is_sent_do_not_overtake_it() -> None:
    order: list[str] = []

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        body = send({"type": "http.response.body", "body": b": progress\n\n", "more_body": True})
        await asyncio.gather(tell(SimpleNamespace(scope=scope), ID), body)

    async def send(message: Any) -> None:
        for _ in range(3 if message["type"] == "http.response.start" else 0):
            await asyncio.sleep(0)
        order.append(message["type"])

    stack: Any = SimpleNamespace(middleware_stack=app)
    add_exposure_header(stack, SERVICE)
    await stack.middleware_stack({"type": "http", "path": "/generate"}, None, send)
    assert order == ["http.response.start", "http.response.body"]


async def test_requests_of_an_engine_have_no_head() -> None:
    await tell(None, ID)
    await tell(SimpleNamespace(scope={}), ID)
