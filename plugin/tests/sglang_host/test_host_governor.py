"""Children wait for places: together, fairly, and never for ever. Error rate 0."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from sglang_power.sglang_host.tokenizer.governor import Governor


class Children:
    """Children of requests that run until they are told to end.

    Attributes:
        began: requests in the order in which their children were admitted.
    """

    def __init__(self, governor: Governor) -> None:
        self.governor = governor
        self.began: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def ask(self, request: str, count: int = 1, places: int = 1) -> None:
        end = self._ends.setdefault(request, asyncio.Event())
        self.tasks += [asyncio.create_task(self._run(request, places, end)) for _ in range(count)]

    async def _run(self, request: str, places: int, end: asyncio.Event) -> None:
        async with self.governor.places(request, places):
            self.began.append(request)
            await end.wait()

    async def settle(self) -> list[str]:
        """Return who has begun once nothing more happens by itself."""
        for _ in range(10):
            await asyncio.sleep(0)
        return self.began

    async def end(self, request: str) -> list[str]:
        """End a request's children; return who has begun then."""
        self._ends.pop(request).set()
        return await self.settle()


async def test_children_of_one_moment_are_admitted_together() -> None:
    children = Children(Governor(5))
    children.ask("a", 3)
    assert await children.settle() == ["a"] * 3
    children.ask("b", 3)
    assert await children.settle() == ["a"] * 3  # two places are free, and none of the three takes them
    assert await children.end("a") == ["a"] * 3 + ["b"] * 3


async def test_the_request_with_the_fewest_children_is_next_and_of_several_the_oldest() -> None:
    children = Children(Governor(4))
    children.ask("a", 3)
    children.ask("x", 1)
    await children.settle()
    for request in ("a", "b", "c"):
        children.ask(request)
        await children.settle()
    assert await children.end("x") == [*"aaax", "b"]
    assert await children.end("b") == [*"aaaxb", "c"]
    assert await children.end("c") == [*"aaaxbc", "a"]


@pytest.mark.parametrize(("children_of_one", "places"), [(7, 1), (1, 7), (2, 2)])
async def test_more_than_there_are_places_run_all_the_same(children_of_one: int, places: int) -> None:
    children = Children(Governor(3))
    children.ask("a", children_of_one, places)
    await children.settle()
    children.ask("b")
    await children.end("a")
    await children.end("b")
    await asyncio.gather(*children.tasks)
    assert Counter(children.began) == {"a": children_of_one, "b": 1}


async def test_an_abort_ends_the_waiting() -> None:
    children = Children(Governor(1))
    children.ask("a")
    await children.settle()
    children.ask("b", 2)
    await children.settle()
    children.governor.dismiss("b")
    children.governor.dismiss("nobody")
    assert await children.settle() == ["a", "b", "b"]
    await children.end("b")
    children.ask("c")
    assert (await children.settle()).count("c") == 0  # who was dismissed gave back no place that it had not
    assert (await children.end("a")).count("c") == 1


async def test_who_is_cancelled_takes_no_place_along() -> None:
    """Also in the moment in which it is admitted."""
    children = Children(Governor(1))
    children.ask("a")
    await children.settle()
    children.ask("b")
    await children.settle()
    children.tasks[0].cancel()
    await asyncio.sleep(0)
    children.tasks[1].cancel()
    children.ask("c")
    assert await children.settle() == ["a", "c"]


@pytest.mark.parametrize(("others", "share"), [(0, 8), (1, 8), (2, 5), (5, 2), (20, 1)])
async def test_the_share_of_a_request_falls_with_their_number(others: int, share: int) -> None:
    children = Children(Governor(10))
    for number in range(others):
        children.ask(str(number))
    await children.settle()
    assert children.governor.share(8) == share


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_nobody_waits_for_ever_and_no_place_is_lost(seed: int) -> None:
    """Random requests, of which some are cancelled; never more at work than there are places."""
    draw, most, at_work = random.Random(seed), 6, Counter[str]()
    governor = Governor(most)

    async def run(request: str, places: int) -> None:
        async with governor.places(request, places):
            at_work[request] += min(places, most)
            assert at_work.total() <= most
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
            at_work[request] -= min(places, most)

    tasks: list[asyncio.Task[None]] = []
    for _ in range(60):
        request = draw.choice("abcd")
        tasks += [
            asyncio.create_task(run(request, draw.choice([1, 1, 1, 2, 8]))) for _ in range(draw.randrange(5))
        ]
        if seed % 2 and draw.random() < 0.2:
            draw.choice(tasks or [asyncio.create_task(asyncio.sleep(0))]).cancel()
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert governor.counts() == {"children": 0, "waiting": 0}
    assert governor.share(most) == most
