"""How many children run at once, and whose turn it is. Tokenizer process.

A server has room for so many running rows; plain requests share it. Beyond `limits.max_inflight_children`,
children wait here, not in SGLang's queue. Those that one request asks for at the same moment (particles of a
block, samples of a vote) are admitted together, so that they start in one pass; between requests the one
with the fewest children at work is next, and of several the one that has waited longest. Waiting delays an
answer and changes nothing else of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class _Waiting:
    """Children that are sent together and wait for their places, all at once.

    Args:
        places: how many.
        admitted: whether they have them, once that is decided.
    """

    places: int
    admitted: asyncio.Future[bool]


class Governor:
    """The places of children.

    Args:
        most: children at work at once.
    """

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._at_work: Counter[str] = Counter()
        self._waiting: dict[str, list[_Waiting]] = {}  # those without an answer; no request without any

    @asynccontextmanager
    async def places(self, request: str, children: int = 1) -> AsyncIterator[None]:
        """Hold the places of children that are sent together, for the time of a with-block.

        Args:
            request: the id of theirs.
            children: their number; where it is above the limit, the whole limit has to be free.
        """
        asked = min(children, self._most)
        held = asked if await self._admitted(request, asked) else 0
        try:
            yield
        finally:
            self._give_back(request, held)

    def dismiss(self, request: str) -> None:
        """Let waiting children of a request go on without a place: it was aborted, and they will see that."""
        for each in self._waiting.pop(request, []):
            if not each.admitted.done():
                each.admitted.set_result(False)

    def share(self, wanted: int) -> int:
        """Return how many children a request may have at work now so that others need not wait, at least one.

        For requests whose law does not depend on it.

        Args:
            wanted: where nobody else is at work.
        """
        requests = len(self._at_work.keys() | self._waiting.keys())
        return max(1, min(wanted, self._most // max(1, requests)))

    def counts(self) -> dict[str, int]:
        """Return how many children are at work, and how many wait."""
        waiting = sum(each.places for group in self._waiting.values() for each in group)
        return {"children": self._at_work.total(), "waiting": waiting}

    async def _admitted(self, request: str, places: int) -> bool:
        waiting = _Waiting(places, asyncio.get_running_loop().create_future())
        if not self._waiting:  # only behind those that the same moment brings
            asyncio.get_running_loop().call_soon(self._admit)
        self._waiting.setdefault(request, []).append(waiting)
        try:
            return await waiting.admitted
        except asyncio.CancelledError:
            if waiting.admitted.cancelled():
                self._forget(request, waiting)
            elif waiting.admitted.result():
                self._give_back(request, places)
            raise

    def _forget(self, request: str, waiting: _Waiting) -> None:
        """Take out of the queue who was cancelled in it; those behind may fit now."""
        group = self._waiting.get(request, [])
        if waiting in group:  # else left out already by those who were admitted meanwhile
            group.remove(waiting)
        if not group:
            self._waiting.pop(request, None)
        self._admit()

    def _give_back(self, request: str, places: int) -> None:
        self._free += places
        self._at_work[request] -= places
        if not self._at_work[request]:
            del self._at_work[request]
        self._admit()

    def _admit(self) -> None:
        """Admit the next request's children, all of them together, as long as there is room."""
        while self._waiting and self._free:
            request = min(self._waiting, key=lambda rid: self._at_work[rid])
            if self._free < min(sum(each.places for each in self._waiting[request]), self._most):
                return
            group, left = self._waiting.pop(request), []
            for each in group:
                if each.admitted.done():
                    continue  # cancelled, and about to say so
                if each.places > self._free:
                    left.append(each)
                    continue
                self._free -= each.places
                self._at_work[request] += each.places
                each.admitted.set_result(True)
            if left:
                self._waiting[request] = left
