"""The HTTP endpoint of a reward against a real server on loopback: retries, timeouts, shapes, limits.

The server answers what each test scripts and keeps what it was asked. No time is measured: a call times out
because the server does not answer before the test has ended. Error rate 0.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import AnyHttpUrl
from sglang_power.errors import RewardError
from sglang_power.rewards import Endpoint, EndpointConfig, NamedReward, Scorer

HANG = 0
"""A status that is never sent: the server keeps silent until the test has ended."""

DROP = -1
"""The server closes the connection without a word."""


@dataclass
class Stub:
    """What the server does, and what it has seen.

    Args:
        url: of the server.
        script: (status, body) of each answer in turn; the last one repeats.
    """

    url: str = ""
    script: list[tuple[int, str]] = field(default_factory=lambda: [(200, '{"score": 1.5}')])
    bodies: list[Any] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)
    together: threading.Barrier | None = None

    def next_answer(self, handler: BaseHTTPRequestHandler) -> tuple[int, str]:
        """Take note of a call, and say what is answered."""
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            self.bodies.append(body)
            self.tokens.append(handler.headers.get("Authorization"))
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def enter(self, change: int) -> None:
        """Count the calls at work."""
        with self.lock:
            self.at_once += change
            self.most_at_once = max(self.most_at_once, self.at_once)


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server on loopback that lives as long as the test."""
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            stub.enter(+1)
            status, body = stub.next_answer(self)
            if stub.together is not None:
                stub.together.wait(timeout=30)
                stub.over.wait(timeout=0.1)  # long enough for a call too many to come in
            if status == HANG:
                stub.over.wait()
            stub.enter(-1)
            if status > 0:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}/score"
    yield stub
    stub.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@asynccontextmanager
async def endpoint(url: str, **fields: Any) -> AsyncIterator[NamedReward]:
    """The endpoint `judge` as a request would meet it."""
    config = EndpointConfig(url=AnyHttpUrl(url), backoff_s=0.001, **fields)
    judge = Endpoint("judge", config)
    try:
        yield NamedReward("judge", judge, config.on_error)
    finally:
        await judge.aclose()


async def failure(url: str, **fields: Any) -> str:
    """What the error of one call says."""
    async with endpoint(url, **fields) as judge:
        with pytest.raises(RewardError) as caught:
            await judge.score("p", "a")
    assert str(caught.value).startswith("reward 'judge': ")
    assert "127.0.0.1" not in str(caught.value), "clients do not learn the address"
    return str(caught.value)


async def test_prompt_and_answer_go_out_and_the_score_comes_back(stub: Stub) -> None:
    stub.script = [(200, '{"score": -0.25, "why": "too long"}')]
    async with endpoint(stub.url) as judge:
        assert await judge.score('say "é"', "ü\n\u2028") == -0.25
    assert stub.bodies == [{"prompt": 'say "é"', "answer": "ü\n\u2028"}]
    assert stub.tokens == [None]


async def test_the_token_of_the_environment_goes_with_every_call(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    stub.script = [(500, ""), (200, '{"score": 1}')]
    async with endpoint(stub.url, headers_env="JUDGE_TOKEN") as judge:
        assert await judge.score("p", "a") == 1.0
    assert stub.tokens == ["Bearer secret"] * 2


@pytest.mark.parametrize("status", [500, 502, 503, 429, DROP])
async def test_what_may_pass_is_tried_again(stub: Stub, status: int) -> None:
    stub.script = [(status, "later"), (status, "later"), (200, '{"score": 3}')]
    async with endpoint(stub.url, retries=2) as judge:
        assert await judge.score("p", "a") == 3.0
    assert len(stub.bodies) == 3


@pytest.mark.parametrize("retries", [0, 1, 3])
async def test_retries_are_counted_and_told(stub: Stub, retries: int) -> None:
    stub.script = [(503, "")]
    attempts = "1 attempt)" if retries == 0 else f"{retries + 1} attempts)"
    said = await failure(stub.url, retries=retries)
    assert f"HTTP 503 ({attempts}" in said
    assert len(stub.bodies) == retries + 1


@pytest.mark.parametrize("status", [400, 401, 404, 302])
async def test_what_will_not_pass_is_not_tried_again(stub: Stub, status: int) -> None:
    stub.script = [(status, "")]
    assert f"HTTP {status} (1 attempt)" in await failure(stub.url, retries=3)
    assert len(stub.bodies) == 1


async def test_each_attempt_has_its_timeout(stub: Stub) -> None:
    stub.script = [(HANG, ""), (200, '{"score": 2}')]
    async with endpoint(stub.url, retries=1, timeout_s=0.3) as judge:
        assert await judge.score("p", "a") == 2.0
    stub.script = [(HANG, "")]
    assert "no answer within 0.3 s (2 attempts)" in await failure(stub.url, retries=1, timeout_s=0.3)
    assert len(stub.bodies) == 4


async def test_nobody_listens() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert "ConnectError (2 attempts)" in await failure(url, retries=1)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "1.5",
        "[1.5]",
        "{}",
        '{"score": null}',
        '{"score": "1"}',
        '{"score": true}',
        '{"Score": 1}',
    ],
)
async def test_answers_of_another_shape_are_errors_and_no_reason_to_try_again(stub: Stub, body: str) -> None:
    stub.script = [(200, body)]
    said = await failure(stub.url)
    assert f'answered {body!r}, not {{"score": number}}' in said
    assert len(stub.bodies) == 1


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ('{"score": NaN}', "scored nan, which is not finite"),
        ('{"score": -Infinity}', "scored -inf, which is not finite"),
        ('{"score": 1e999}', "scored inf, which is not finite"),
        ('{"score": 2.5}', r"scored 2.5, above its declared upper_bound 2.0"),
    ],
)
async def test_scores_that_cannot_be_used_are_errors(stub: Stub, body: str, says: str) -> None:
    stub.script = [(200, body)]
    assert says in await failure(stub.url, upper_bound=2.0)


async def test_calls_at_once_are_limited_and_really_at_once(stub: Stub) -> None:
    stub.together = threading.Barrier(3)
    async with endpoint(stub.url, max_concurrent=3) as judge:
        scores = await asyncio.gather(*[judge.score("p", str(i)) for i in range(9)])
    assert scores == [1.5] * 9
    assert stub.most_at_once == 3


async def test_a_cancelled_call_frees_its_place(stub: Stub) -> None:
    stub.script = [(HANG, ""), (200, '{"score": 4}')]
    async with endpoint(stub.url, max_concurrent=1) as judge:
        call = asyncio.create_task(judge.score("p", "a"))
        while not stub.bodies and not call.done():
            await asyncio.sleep(0.001)
        call.cancel()
        assert await judge.score("p", "b") == 4.0
    assert call.cancelled()


async def test_without_goes_on_and_tells(stub: Stub) -> None:
    stub.script = [(500, ""), (500, ""), (200, '{"score": 1}')]
    async with endpoint(stub.url, retries=1, on_error="without") as judge:
        scorer = Scorer(judge)
        assert await scorer.score("p", "a") is None
        assert await scorer.score("p", "b") == 1.0
    report = scorer.report()
    assert (report["calls"], report["failed"]) == (2, 1)
    assert "HTTP 500 (2 attempts)" in report["reason"]
