"""One soak of one server, and the verdict: everything that should not have been, in words."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import httpx

from integration_tests.helpers.clients import HTTP, eventually, post, quiet
from integration_tests.server import Server
from integration_tests.soak_tests.driving import Doors, Outcomes, drive
from integration_tests.soak_tests.memory import MOST_MB_PER_1000, Memory, Slope
from integration_tests.soak_tests.visits import visits

IDLE = {"requests": 0, "children": 0, "waiting": 0}


@dataclass(frozen=True)
class Verdict:
    """What a soak showed.

    Args:
        counts: requests by fate and status.
        findings: what should not have been; empty where all is well.
        slopes: memory of every process.
    """

    counts: Counter[str]
    findings: list[str]
    slopes: list[Slope]


def soak(server: Server, router: Server | None, clients: int, seconds: float, seed: int) -> Verdict:
    """Drive a server, wait until it is idle, and say what was wrong.

    Args:
        server: with metrics and the contract's third-party sampler.
        router: in front of it; None leaves it out.
        clients: at once.
        seconds: until no client begins another request.
        seed: of what is asked.
    """
    outcomes, memory = Outcomes(), Memory(server.pid)
    doors = Doors(server.url, router.url if router else None)

    async def run() -> None:
        watching = asyncio.create_task(memory.watch(lambda: outcomes.requests))
        await drive(doors, visits(seed, router=router is not None), clients, seconds, outcomes)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    asyncio.run(run())
    memory.sample(outcomes.requests)
    slopes = memory.slopes()
    steep = [slope for slope in slopes if slope.mb_per_1000 > MOST_MB_PER_1000]
    findings = [*outcomes.findings, *left_behind(server), *(f"memory grows: {slope}" for slope in steep)]
    return Verdict(outcomes.counts, findings, slopes)


def left_behind(server: Server) -> Iterator[str]:
    """Yield what a server still holds once it should be idle: by the plugin's account, and by SGLang's."""
    try:
        quiet(server)
        eventually(lambda: at_work(server) == [IDLE], "no request and no child is at work")
    except AssertionError as error:
        yield f"left behind: {error}; at work: {at_work(server)}"
        return
    if post(server, "/flush_cache", {}).status_code != httpx.codes.OK:
        yield "left behind: the cache cannot be emptied"
    used = [load["num_used_tokens"] for load in HTTP.get(server.url + "/v1/loads").json()["loads"]]
    if any(used):
        yield f"left behind: KV slots of {used} tokens"


def at_work(server: Server) -> list[dict[str, int]]:
    """Return what each tokenizer process says it has at work."""
    status = HTTP.get(server.url + "/sglang_power/status").json()
    return [process["at_work"] for process in status["processes"] if process["role"] == "tokenizer"]
