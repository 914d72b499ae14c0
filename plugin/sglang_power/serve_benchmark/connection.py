"""Asks the server over HTTP, many times at once.

By aiohttp: httpx takes about 2 ms of CPU for a request, fifteen times as much, which would slow down a server
on the same machine and make a bottleneck of the naive client.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol

import aiohttp

from sglang_power.errors import HostError
from sglang_power.gateways import json_object

TIMEOUT_S: Final = 900.0
"""Of one answer: those that stand in a queue under load wait long."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A response of the server."""

    status: int
    text: str

    @property
    def message(self) -> str:
        """Return what an error says."""
        error = json_object(self.text).get("error")
        return str(error.get("message", error) if isinstance(error, dict) else error or self.text)

    def json(self) -> Any:
        """Return the document.

        Raises:
            HostError: of another status than 200.
        """
        if self.status != HTTPStatus.OK:
            raise HostError(f"HTTP {self.status}: {self.message}")
        return json.loads(self.text)


class Connection(Protocol):
    """A server that can be asked."""

    async def post(self, path: str, body: Any = None) -> Reply:
        """Send a JSON body.

        Raises:
            HostError: there is no response.
        """
        ...

    async def get(self, path: str) -> Reply:
        """Get a document; raises as `post`."""
        ...


class HttpConnection:
    """A server behind a URL."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def post(self, path: str, body: Any = None) -> Reply:
        """Send a JSON body."""
        return await self._request("POST", path, body)

    async def get(self, path: str) -> Reply:
        """Get a document."""
        return await self._request("GET", path, None)

    async def _request(self, method: str, path: str, body: Any) -> Reply:
        try:
            async with self._session.request(method, path, json=body) as response:
                return Reply(response.status, await response.text())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise HostError(f"{path} gave no answer: {error!r}") from error


@asynccontextmanager
async def connected(url: str, headers: Mapping[str, str]) -> AsyncIterator[Connection]:
    """A pool of as many connections as requests.

    Args:
        url: base of the server.
        headers: of every request.
    """
    async with aiohttp.ClientSession(
        url,
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0),
    ) as session:
        yield HttpConnection(session)
