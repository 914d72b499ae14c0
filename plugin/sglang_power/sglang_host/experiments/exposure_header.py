"""The exposure id as a response header, for clients that see no extra fields of bodies. Tokenizer process.

Frameworks hand the text of an answer on and keep the headers. An answer of one piece has its head sent after
the enrolment. A stream of /generate has it sent before: it waits for the enrolment, which comes before any
token, or for the first bytes of the body, so that nothing waits for ever. Heads of other routes, and of
servers where no experiment is in force, pass at once.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sglang_power.sglang_host.experiments.service import ExperimentService

HEADER: Final = "x-sglang-power-exposure-id"
_KEY: Final = "sglang_power.head"
_STREAMS: Final = b"text/event-stream"


def add_exposure_header(app: Any, service: ExperimentService) -> None:
    """Put the header into the responses of SGLang's application, which may have started already."""
    if app.middleware_stack is None:
        app.user_middleware.insert(0, Middleware(ExposureHeader, service=service))
    else:  # In tokenizer workers this is called while the application starts.
        app.middleware_stack = ExposureHeader(app.middleware_stack, service=service)


async def tell(request: Any, exposure_id: str | None) -> None:
    """Say to whoever sends a request's response what it was enrolled as; None where it was not."""
    head = None if request is None else request.scope.get(_KEY)
    if head is not None:
        await head.decide(exposure_id)


class ExposureHeader:
    """ASGI middleware that names the exposure in the head of a response.

    Args:
        app: the rest of the application.
        service: of this process.
    """

    def __init__(self, app: ASGIApp, service: ExperimentService) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, with a way to tell its exposure."""
        if scope["type"] == "http" and self._service.may_enrol(scope["path"]):
            scope[_KEY] = head = _Head(send)
            send = head.send
        await self._app(scope, receive, send)


class _Head:
    """The head of one response, held back while it is not known what to write into it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: Message | None = None
        self._exposure_id: str | None = None
        self._decided = False
        self._turn = asyncio.Lock()

    async def decide(self, exposure_id: str | None) -> None:
        """Learn the exposure, if any, and let the head go."""
        async with self._turn:
            self._exposure_id, self._decided = exposure_id, True
            await self._release()

    async def send(self, message: Message) -> None:
        """Send a message of the application's, or hold it back."""
        async with self._turn:
            if message["type"] != "http.response.start":
                await self._release()
            elif self._decided or not _is_stream(message):
                message = self._named(message)
            else:
                self._held = message
                return
            await self._send(message)

    async def _release(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            await self._send(self._named(held))

    def _named(self, message: Message) -> Message:
        if self._exposure_id is None:
            return message
        name = (HEADER.encode(), self._exposure_id.encode())
        return {**message, "headers": [*message.get("headers", ()), name]}


def _is_stream(message: Message) -> bool:
    headers = {bytes(name).lower(): bytes(value) for name, value in message.get("headers", ())}
    return headers.get(b"content-type", b"").startswith(_STREAMS)
