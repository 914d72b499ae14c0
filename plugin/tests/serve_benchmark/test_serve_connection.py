"""The benchmark's connection, against a server on the loopback. Error rate 0."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from sglang_power.errors import HostError
from sglang_power.serve_benchmark.askers import NotServedError, generate
from sglang_power.serve_benchmark.connection import Reply, connected


async def echo(request: web.Request) -> web.Response:
    body = await request.json()
    if status := body.get("status"):
        return web.json_response({"error": {"message": "no such sampler"}}, status=status)
    return web.json_response({"asked": body, "key": request.headers.get("Authorization")})


@pytest.fixture
async def url() -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_post("/generate", echo)
    async with TestServer(application) as server:
        yield str(server.make_url("/"))


async def test_a_request_carries_its_body_and_the_key(url: str) -> None:
    async with connected(url, {"Authorization": "Bearer key"}) as connection:
        assert await generate(connection, {"text": "?"}) == {"asked": {"text": "?"}, "key": "Bearer key"}
        assert (await connection.get("/metrics")).status == 404


async def test_a_refusal_and_a_failure_are_told_apart(url: str) -> None:
    async with connected(url, {}) as connection:
        with pytest.raises(NotServedError, match="no such sampler"):
            await generate(connection, {"status": 400})
        with pytest.raises(HostError, match="HTTP 503: no such sampler"):
            await generate(connection, {"status": 503})


async def test_a_server_that_is_gone_is_told() -> None:
    async with connected("http://127.0.0.1:9", {}) as connection:
        with pytest.raises(HostError, match="gave no answer"):
            await connection.post("/generate", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"error": {"message": "m"}}', "m"), ('{"error": "e"}', "e"), ("plain", "plain"), ("{}", "{}")],
)
def test_messages_of_errors_come_in_several_forms(text: str, message: str) -> None:
    assert Reply(500, text).message == message
