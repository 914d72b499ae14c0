"""Recorded answers of a remote server, and a transport that plays them.

data/remote_answers.json holds requests and the answers of SGLang 0.5.23 without the plugin on the pivot model
(integration_tests/tests/test_http_engine_server.py asks them again).
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "remote_answers.json").read_text(encoding="utf-8")
)
"""Name -> {"request", "answer"}."""

PROMPT = (83, 57, 45, 53, 44, 52, 47, 58, 60)
FORCED = (100, 57, 45)

STOP, LETTER = 0, 99
"""The tokens of the recorded stop probe."""


def ok(answer: Any, **meta: Any) -> httpx.Response:
    """HTTP 200 with an answer, some of its `meta_info` replaced."""
    told = copy.deepcopy(answer)
    if meta:
        told["meta_info"] |= meta
    return httpx.Response(200, json=told)


def recorded(name: str, **meta: Any) -> httpx.Response:
    """A recorded answer."""
    return ok(RECORDED[name]["answer"], **meta)


def scored(ids: Sequence[int]) -> dict[str, Any]:
    """The recorded answer to forced tokens, as if these had been forced."""
    answer: dict[str, Any] = copy.deepcopy(RECORDED["forced_only"]["answer"])
    answer["meta_info"]["input_token_logprobs"] = [[None, 60, None], *([-1.0, v, None] for v in ids)]
    top = [[-0.7, 1, None], [-0.9, 2, None]]
    answer["meta_info"]["input_top_logprobs"] = [None, *[top] * len(ids)]
    return answer


@dataclass
class Played:
    """A transport that plays answers, and what it was asked.

    Args:
        script: what generations are answered by, in turn; the last one repeats. Exceptions are raised.
        hang: generations wait until they are aborted.
        settings: of the server.
    """

    script: list[httpx.Response | Exception] = field(default_factory=list)
    hang: bool = False
    settings: httpx.Response = field(default_factory=lambda: httpx.Response(200, json={}))
    generations: list[httpx.Request] = field(default_factory=list)
    aborts: list[str] = field(default_factory=list)
    probes: list[list[int]] = field(default_factory=list)
    _aborted: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """Of the generations."""
        return [json.loads(request.content) for request in self.generations]

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        if request.url.path == "/server_info":
            return self.settings
        if request.url.path == "/abort_request":
            self.aborts.append(body["rid"])
            self._aborted.set()
            return httpx.Response(200)
        if body.get("return_prompt_token_ids"):
            return recorded("prompt")
        if "rid" not in body:
            return self._probed([ids[0] for ids in body["input_ids"]])
        self.generations.append(request)
        if self.hang:
            await self._aborted.wait()
        played = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(played, Exception):
            raise played
        return played

    def _probed(self, tokens: list[int]) -> httpx.Response:
        self.probes.append(tokens)
        answers = RECORDED["stops"]["answer"]
        told = [copy.deepcopy(answers[0 if token == STOP else 1]) for token in tokens]
        for token, answer in zip(tokens, told, strict=True):
            answer["output_ids"] = [token]
        return httpx.Response(200, json=told)


@asynccontextmanager
async def served(played: Played) -> AsyncIterator[str]:
    """The URL of a socket at which `played` answers; mock transports have no pool of connections."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        parts = [field.partition(": ") for field in fields if field]
        headers = httpx.Headers([(name, value) for name, _, value in parts])
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = line.split()
        body = (await played(httpx.Request(method, f"http://played{path}", content=content))).content
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
