"""The connection to one server: pool, retries, deadlines, aborts, errors. Knows no law and no row.

A generation has no side effects, so a lost connection or a server that is too busy is tried again. Every
attempt carries an id of its own: SGLang refuses a second request under one that still runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from sglang_power import clock
from sglang_power.errors import HostError, OverloadedError, RequestError, message_of
from sglang_power.fields import Positive, PositiveFloat

Json = dict[str, Any]

BUSY = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)

TRANSIENT = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout, OverloadedError)
"""What is tried again."""

ABORT_EVERY_S = 0.1
"""An abort that arrives before its request is lost, so it is repeated until the answer is there."""

RANK_HEADER = "X-Data-Parallel-Rank"
"""Read by routers and by SGLang's OpenAI routes; /generate reads the rank in the body."""


class RemoteOptions(BaseModel):
    """How a server is asked.

    Args:
        api_key: bearer token.
        timeout_s: seconds without an answer after which one request is given up.
        connect_timeout_s: seconds until a connection must stand.
        max_connections: requests at once, aborts aside; more wait.
        keepalive_s: seconds after which an idle connection is given up; SGLang does so after 5.
        retries: attempts after the first one, on lost connections, HTTP 429 and 503.
        backoff_s: seconds before the first retry; they double, plus up to as many at random.
        max_backoff_s: they double up to this many.
        check_server: ask /server_info for settings that change the law of draws; a router may not know it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    api_key: SecretStr | None = None
    timeout_s: PositiveFloat = 600.0
    connect_timeout_s: PositiveFloat = 10.0
    max_connections: Positive = 64
    keepalive_s: PositiveFloat = 3.0
    retries: Annotated[int, Field(ge=0)] = 4
    backoff_s: PositiveFloat = 0.2
    max_backoff_s: PositiveFloat = 10.0
    check_server: bool = True

    def client(self, url: str, transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
        """A pool of connections without a limit of its own; see `Connection`."""
        key = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key.get_secret_value()}"}
        return httpx.AsyncClient(
            base_url=url,
            headers=key,
            timeout=httpx.Timeout(self.timeout_s, connect=self.connect_timeout_s),
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=self.max_connections,
                keepalive_expiry=self.keepalive_s,
            ),
            transport=transport,
        )


class Connection:
    """A running server.

    It counts the requests at once itself: in a pool with a limit, an abort would wait for a connection until
    one of the generations that it is to end is over.

    Args:
        url: its base URL.
        options: how it is asked.
        transport: for tests.
    """

    def __init__(
        self, url: str, options: RemoteOptions, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._http, self._options = options.client(url, transport), options
        self._free = asyncio.Semaphore(options.max_connections)

    async def aclose(self) -> None:
        """Close the pool."""
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        """GET a JSON document."""
        return await self._retried(self._send, "GET", path, None)

    async def post(self, path: str, body: Json) -> Any:
        """POST a JSON document that is answered soon."""
        return await self._retried(self._send, "POST", path, body)

    async def generate(
        self, body: Json, *, dp_rank: int | None = None, deadline: float | None = None
    ) -> Json:
        """POST one prompt to /generate.

        Args:
            body: without `rid`.
            dp_rank: the data-parallel rank that is to serve it.
            deadline: seconds of `clock.now` at which it is aborted; the answer then holds what there is.

        Raises:
            RequestError: the server refused it.  OverloadedError: it stayed too busy for every retry.
            HostError: it cannot be reached, gave no answer in time, or failed.
        """
        headers = {}
        if dp_rank is not None:
            body, headers = {**body, "routed_dp_rank": dp_rank}, {RANK_HEADER: str(dp_rank)}
        answer: Json = await self._retried(self._generate_once, body, headers, deadline)
        return answer

    async def _retried(self, attempt: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        options = self._options
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(TRANSIENT),
            wait=wait_exponential(multiplier=options.backoff_s, max=options.max_backoff_s)
            + wait_random(0.0, options.backoff_s),
            stop=stop_after_attempt(options.retries + 1),
            reraise=True,
        )
        try:
            return await retrying(self._in_turn, attempt, *args)
        except httpx.HTTPError as error:
            raise HostError(f"{self._http.base_url} gave no answer: {error!r}") from error

    async def _in_turn(self, attempt: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        async with self._free:
            return await attempt(*args)

    async def _generate_once(self, body: Json, headers: dict[str, str], deadline: float | None) -> Any:
        rid = uuid.uuid4().hex
        sending = self._send("POST", "/generate", {**body, "rid": rid}, headers)
        request = asyncio.ensure_future(sending)
        try:
            wait_s = None if deadline is None else max(0.0, deadline - clock.now())
            await asyncio.wait({request}, timeout=wait_s)
            while not request.done():
                await self._abort(rid)
                await asyncio.wait({request}, timeout=ABORT_EVERY_S)
            return request.result()
        except (asyncio.CancelledError, httpx.ReadTimeout):
            request.cancel()
            await self._abort(rid)
            raise

    async def _abort(self, rid: str) -> None:
        """End a request; where this fails, its lost connection ends it too, some seconds later."""
        with contextlib.suppress(httpx.HTTPError):
            await self._http.post("/abort_request", json={"rid": rid})

    async def _send(
        self, method: str, path: str, body: Json | None, headers: dict[str, str] | None = None
    ) -> Any:
        response = await self._http.request(method, path, json=body, headers=headers)
        if response.status_code == httpx.codes.OK:
            return _document(response)
        told = f"HTTP {response.status_code} of {path}: {message_of(response.text)}"
        if response.status_code in BUSY:
            raise OverloadedError(told)
        if response.is_client_error:
            raise RequestError("request", path, told, "The server refused it")
        raise HostError(told)


def _document(response: httpx.Response) -> Any:
    try:
        return response.json()
    except json.JSONDecodeError as error:
        raise HostError(f"{response.url} answers {response.text!r:.80}, which is not JSON") from error
