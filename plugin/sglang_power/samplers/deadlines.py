"""How long answers may be read, compared and scored: to the deadline of their request, or to its abort.

Wraps whatever asks somebody for that: the served model, a reward, another process. What is not known by then
stays unknown and says so, so that the answers that are there can still be chosen from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from sglang_power import clock
from sglang_power.answers import LlmRelation, Relation, Verdict, undecided
from sglang_power.answers.equivalence import Keyed, unreadable
from sglang_power.errors import ChainAbortedError
from sglang_power.samplers.candidates import Reader, Reading
from sglang_power.samplers.evaluation import Evaluator
from sglang_power.samplers.scores import AnswerReward
from sglang_power.types import Tokens, Usage

T = TypeVar("T")

Work = Callable[[], Coroutine[Any, Any, T]]


class Watched(Protocol):
    """Awaits something that is no call of an engine; an abort or a lost client ends it."""

    async def __call__(self, work: Coroutine[Any, Any, T]) -> T:
        """Return its result."""
        ...


@dataclass
class Deadline:
    """Of one selection.

    Args:
        watched: awaits what is no call of an engine.
        at: seconds of `clock.now`; None: no limit.

    Attributes:
        aborted, late: something was left unknown because of an abort, or because the deadline had passed.
    """

    watched: Watched
    at: float | None = None
    aborted: bool = field(default=False, init=False)
    late: bool = field(default=False, init=False)

    @property
    def reason(self) -> str:
        """Why something was left unknown."""
        return "the request was aborted" if self.aborted else "the request's deadline had passed"

    async def for_children(self, work: Work[T]) -> T | None:
        """What children of the request answer; None where an abort ends them, or the deadline had passed.

        Those that run at the deadline end by themselves: they are short.
        """
        if self._remaining() == 0:
            self.late = True
            return None
        try:
            return await work()
        except ChainAbortedError:
            self.aborted = True
            return None

    async def for_others(self, work: Work[T]) -> T | None:
        """The same for what is no child: the deadline, an abort or a lost client ends it."""
        try:
            async with asyncio.timeout(self._remaining()) as limit:
                return await self.for_children(lambda: self.watched(work()))
        except TimeoutError:
            if not limit.expired():
                raise
            self.late = True
            return None

    def _remaining(self) -> float | None:
        """Seconds until the deadline, 0 behind it; None without one."""
        return None if self.at is None else max(0.0, self.at - clock.now())


@dataclass(frozen=True)
class BoundedReader:
    """A Reader that asks the model."""

    reader: Reader
    deadline: Deadline

    def text(self, ids: Sequence[int], finished: bool) -> str:
        """Read as `reader` does."""
        return self.reader.text(ids, finished)

    async def answer(self, tokens: Tokens, finished: bool) -> Reading:
        """Read as `reader` does."""
        found = await self.deadline.for_children(lambda: self.reader.answer(tokens, finished))
        return Reading(None, note=self.deadline.reason) if found is None else found


@dataclass(frozen=True)
class BoundedRelation:
    """A Relation whose comparisons take time."""

    relation: Relation
    deadline: Deadline

    async def same(self, a: str, b: str) -> Verdict:
        """Compare two answers; undecided where there is no time."""
        asks_children = isinstance(self.relation, LlmRelation)
        wait = self.deadline.for_children if asks_children else self.deadline.for_others
        verdict = await wait(lambda: self.relation.same(a, b))
        return undecided(self.deadline.reason) if verdict is None else verdict

    async def unreadable(self, answer: str) -> str | None:
        """Return why an answer cannot be read; None also where there is no time to find out."""
        return await self.deadline.for_others(lambda: unreadable(self.relation, answer))


def bounded(relation: Relation, deadline: Deadline) -> Relation:
    """The relation; one that compares keys answers at once and needs no deadline."""
    return relation if isinstance(relation, Keyed) else BoundedRelation(relation, deadline)


@dataclass(frozen=True)
class BoundedEvaluator:
    """An Evaluator that asks the model."""

    evaluator: Evaluator
    deadline: Deadline

    async def right(self, answer: str) -> tuple[float | None, Usage]:
        """Return how likely an answer is right; None where there is no time."""
        value = await self.deadline.for_children(lambda: self.evaluator.right(answer))
        return (None, Usage()) if value is None else value


@dataclass(frozen=True)
class BoundedReward:
    """A reward of answers."""

    reward: AnswerReward
    deadline: Deadline

    async def __call__(self, ids: Sequence[int], finished: bool) -> float | None:
        """Return R of an answer; None where there is no time."""
        return await self.deadline.for_others(lambda: self.reward(ids, finished))

    def report(self) -> dict[str, Any]:
        """Return what the reward says of its calls."""
        return self.reward.report()
