"""Clients at work, and what each of them saw. Findings are collected, so that one does not hide the next."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

from integration_tests.soak_tests.visits import PLAIN, Visit

ANSWER_S = 600.0
"""A bound for a request that is lost."""

FINISH = re.compile(r'"finish_reason": ?(?:\{[^{}]*"type": ?)?"(?:stop|length)"')
SAMPLER = re.compile(r'"sampler": ?"(\w+)"')


@dataclass
class Outcomes:
    """What became of all requests so far.

    Args:
        counts: by the client's fate and the HTTP status, or "left".
        findings: what should not have been, in words.
    """

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Return how many have ended."""
        return self.counts.total()


@dataclass(frozen=True)
class Doors:
    """Where requests go.

    Args:
        server: its URL.
        router: that of the router in front of it; None without one.
    """

    server: str
    router: str | None = None


async def drive(
    doors: Doors, asked: Iterator[Visit], clients: int, seconds: float, outcomes: Outcomes
) -> None:
    """Let clients make one request after another until the time is over, and wait for what they asked last.

    Args:
        doors: where requests go.
        asked: what; every client takes the next one.
        clients: at once.
        seconds: until no client begins another.
        outcomes: is added to.
    """
    end = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=ANSWER_S, limits=limits) as client:

        async def work() -> None:
            while time.monotonic() < end:
                outcomes.counts[await _made(client, doors, next(asked), outcomes.findings)] += 1

        await asyncio.gather(*[work() for _ in range(clients)])


async def _made(client: httpx.AsyncClient, doors: Doors, visit: Visit, findings: list[str]) -> str:
    """Make one request and return what became of it."""
    url = doors.router if visit.routed and doors.router is not None else doors.server
    asking = asyncio.create_task(client.post(url + visit.door.path, json=visit.body))
    if visit.fate == "leaves":
        await asyncio.wait([asking], timeout=visit.after_s)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        return "left"
    if visit.fate == "aborts":
        await asyncio.wait([asking], timeout=visit.after_s)
        aborted = await client.post(doors.server + "/abort_request", json={"rid": visit.body["rid"]})
        if aborted.status_code != httpx.codes.OK:
            findings.append(f"abort of {visit}: {aborted.status_code} {aborted.text[-500:]}")
    try:
        response = await asking
    except httpx.HTTPError as error:
        findings.append(f"no response to {visit}: {error!r}")
        return f"{visit.fate} lost"
    findings += _wrong(visit, response.status_code, response.text)
    return f"{visit.fate} {response.status_code}"


def _wrong(visit: Visit, status: int, text: str) -> Iterator[str]:
    """Yield what is wrong with a response."""

    def told(what: str) -> str:
        return f"{what}: {visit}: {status} {text[-1000:]}"

    if visit.fate == "malformed":
        if not 400 <= status < 500:
            yield told("a malformed body was not refused")
        return
    if status != httpx.codes.OK:
        yield told("no answer")
        return
    if visit.door.stream and not text.rstrip().endswith("data: [DONE]"):
        yield told("a torn stream")
    if visit.fate == "aborts":
        return
    if len(FINISH.findall(text)) < visit.n:
        yield told("a choice is missing")
    if visit.sampler != PLAIN and visit.sampler not in SAMPLER.findall(text):
        yield told("another sampler answered")
