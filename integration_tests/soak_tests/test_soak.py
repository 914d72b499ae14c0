"""Thousands of mixed requests, many of them aborted, abandoned or late: nothing is lost, nothing is left.

`make soak`. Every registered sampler of whole answers, plain requests and a per-step policy, through three
routes, streaming or not, from 32 clients at once. What is asked is a function of the seed; when it is
interrupted is not, so that every run meets other moments. Error rate 0: nothing here is statistical.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import pytest

from integration_tests.helpers.clients import HTTP, WAIT_S, eventually, post, quiet, unfinished
from integration_tests.helpers.contract import CHAT, COMPLETIONS, CONTRACT, GENERATE, Door
from integration_tests.server import Server

pytestmark = pytest.mark.server

REQUESTS = int(os.environ.get("SGLANG_POWER_SOAK_REQUESTS", "2000"))
CLIENTS = 32
SEED = 2026
LATEST_S = 3.0
"""Until when a client aborts or leaves; most answers take less."""

FINISH = re.compile(r'"finish_reason": ?(?:\{[^{}]*"type": ?)?"(?:stop|length)"')
SAMPLER = re.compile(r'"sampler": ?"(\w+)"')

Fate = Literal["stays", "aborts", "leaves", "hurries"]
INTERRUPTED: list[Fate] = ["aborts", "leaves"]
FATES: list[Fate] = ["stays", "stays", "stays", "stays", "hurries", *INTERRUPTED]
Json = dict[str, Any]


@dataclass(frozen=True)
class Visit:
    """One request and what its client does.

    Args:
        body, door: what is asked, and where.
        sampler: who answers; "none" for SGLang itself.
        n: choices.
        fate: "hurries" asks for an answer within a few milliseconds.
        after_s: when it aborts or leaves.
    """

    body: Json
    door: Door
    sampler: str
    n: int
    fate: Fate
    after_s: float


def visits() -> list[Visit]:
    """All requests, in the order in which clients take them."""
    draw = random.Random(SEED)
    asked: list[tuple[str, Json]] = [(name, row.quick) for name, row in CONTRACT.items()]
    asked += [(f"lasting {name}", row.lasting) for name, row in CONTRACT.items()]
    asked += [("none", {}), ("none", {}), ("top_n_sigma", {"sampler": "top_n_sigma", "n": 1.5})]
    made = []
    for _ in range(REQUESTS):
        name, custom = draw.choice(asked)
        lasting, sampler = name.startswith("lasting"), name.removeprefix("lasting ")
        fate = draw.choice(INTERRUPTED if lasting else FATES)
        if fate == "hurries" and (sampler not in CONTRACT or not CONTRACT[sampler].budgets):
            fate = "stays"
        custom = {**custom, "seed": draw.randrange(2**32)} if custom else custom
        if fate == "hurries":
            custom["deadline_ms"] = draw.randrange(1, 200)
        door = Door(draw.choice([GENERATE, COMPLETIONS, CHAT]).path, stream=draw.random() < 0.5)
        n = draw.choice([1, 1, 2])
        body = door.body(custom, 24, n, rid=uuid.UUID(int=draw.getrandbits(128)).hex)
        made.append(Visit(body, door, sampler, n, fate, draw.random() * LATEST_S))
    return made


async def visit(client: httpx.AsyncClient, url: str, each: Visit) -> str:
    """Make one request; return what became of it."""

    async def ask() -> httpx.Response:
        return await client.post(url + each.door.path, json=each.body)

    asking = asyncio.create_task(ask())
    if each.fate == "leaves":
        await asyncio.wait([asking], timeout=each.after_s)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return "left"
    if each.fate == "aborts":
        await asyncio.wait([asking], timeout=each.after_s)
        aborted = await client.post(url + "/abort_request", json={"rid": each.body["rid"]})
        assert aborted.status_code == httpx.codes.OK
    try:
        response = await asking
    except httpx.HTTPError as error:
        raise AssertionError(f"no response to {each}") from error
    text = response.text
    assert response.status_code == httpx.codes.OK or each.fate == "aborts", (each, response.status_code, text)
    if each.fate != "aborts":
        _check_whole(each, text)
    return f"{each.fate} {response.status_code}"


def _check_whole(each: Visit, text: str) -> None:
    """An answer that nobody interrupted has every choice, and says who made it."""
    assert len(FINISH.findall(text)) >= each.n, (each, text[-2000:])
    if each.door.stream:
        assert text.rstrip().endswith("data: [DONE]")
    if each.sampler != "none":
        assert each.sampler in SAMPLER.findall(text), (each, text[-2000:])


async def drive(url: str) -> Counter[str]:
    """All clients at work."""
    waiting, outcomes = visits(), Counter[str]()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=WAIT_S * 5, limits=limits) as client:

        async def work() -> None:
            while waiting:
                outcomes[await visit(client, url, waiting.pop())] += 1

        await asyncio.gather(*[work() for _ in range(CLIENTS)])
    return outcomes


def test_nothing_is_lost_and_nothing_is_left(pivot_server: Server) -> None:
    """No child, no request, no state; no cached reference: the cache can be emptied, and holds nothing."""
    outcomes = asyncio.run(drive(pivot_server.url))
    print(dict(outcomes))
    assert outcomes.total() == REQUESTS
    quiet(pivot_server)
    assert unfinished(pivot_server) == 0

    def idle() -> bool:
        status = HTTP.get(pivot_server.url + "/sglang_power/status").json()
        at_work = [process["at_work"] for process in status["processes"] if process["role"] == "tokenizer"]
        return at_work == [{"requests": 0, "children": 0, "waiting": 0}]

    eventually(idle, "no request and no child is at work")
    assert post(pivot_server, "/flush_cache", {}).status_code == httpx.codes.OK
    (load,) = HTTP.get(pivot_server.url + "/v1/loads").json()["loads"]
    assert load["num_used_tokens"] == 0
