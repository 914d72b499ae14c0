"""Proposals of one chain that are being generated: several at once, taken in the order of their steps.

A proposal depends on the state through the prefix below its cut only. So those of the next steps are launched
as if every step before them were rejected, and after an acceptance the ones stay that the new state would
propose too: with the same random numbers the same cut, behind the same tokens. Nothing that a proposal came
to, and no order in which proposals end, decides whether it is kept, so the chain is the one that makes a
proposal at a time. What is not kept is recalled, and its tokens are counted as wasted.

Moments are depths of the chain. Knows neither SGLang nor HTTP.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sglang_power.algorithms.engine import Engine, Recall
from sglang_power.algorithms.steps import Propose
from sglang_power.types import Continuation, Usage, in_parallel


@dataclass(eq=False)
class Flight:
    """One step's proposal on its way.

    Args:
        proposal: of the state that there is now, or will be if the steps before it are rejected.
        started: the moment at which it was launched.
        tasks: generate its tries.
        recall: ends them.
    """

    proposal: Propose
    started: int
    tasks: list[asyncio.Task[Continuation]]
    recall: Recall = field(repr=False)

    @property
    def longest(self) -> int:
        """Tokens that it may decode at most."""
        return self.proposal.longest

    @property
    def ended(self) -> bool:
        """Whether all of its tries have ended."""
        return all(task.done() for task in self.tasks)


class Flights:
    """The proposals of one chain that are on their way.

    Args:
        engine: generates them.
        deadline: seconds of `clock.now` after which they may be cut short.

    Attributes:
        ahead: proposals that were launched before the step in front of them was decided.
        discarded: those of them that no step took.
    """

    def __init__(self, engine: Engine, deadline: float | None) -> None:
        self._engine, self._deadline = engine, deadline
        self._flying: dict[int, Flight] = {}
        self._recalled: list[Flight] = []
        self.ahead = self.discarded = 0

    def __contains__(self, step: int) -> bool:
        return step in self._flying

    @property
    def steps(self) -> Sequence[int]:
        """The steps whose proposals are on their way."""
        return sorted(self._flying)

    @property
    def recalled(self) -> bool:
        """Whether some that nobody will take have not ended yet."""
        return bool(self._recalled)

    @property
    def longest(self) -> int:
        """Tokens that all of them may decode at most."""
        return sum(flight.longest for flight in [*self._flying.values(), *self._recalled])

    def launch(self, proposal: Propose, now: int, *, ahead: bool = False) -> None:
        """Start to generate a proposal; all that are launched in one go start in one turn of the loop.

        Args:
            proposal: what is generated.
            now: the moment.
            ahead: whether steps before it are undecided.
        """
        self.ahead += ahead
        recall = Recall()
        tasks = [
            asyncio.ensure_future(
                self._engine.generate(dataclasses.replace(call, deadline=self._deadline, recall=recall))
            )
            for call in proposal.calls
        ]
        self._flying[proposal.step] = Flight(proposal, now, tasks, recall)

    async def take(self, step: int) -> tuple[Flight, list[Continuation]]:
        """Wait for a step's proposal; one that has ended is there at once, in the same turn of the loop."""
        flight = self._flying[step]
        if not flight.ended:
            await asyncio.wait(flight.tasks)
        del self._flying[step]
        for task in flight.tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return flight, [task.result() for task in flight.tasks]

    def keep(self, proposals: Iterable[Propose]) -> None:
        """Keep those that the new state proposes too, and recall the others.

        Args:
            proposals: of the new state, for the `steps` that are on their way.
        """
        for proposal in proposals:
            flight = self._flying[proposal.step]
            if flight.proposal.is_drawn_as(proposal):
                flight.proposal = proposal
            else:
                self._recall(proposal.step)

    def recall(self) -> None:
        """Recall all of them."""
        for step in self.steps:
            self._recall(step)

    def _recall(self, step: int) -> None:
        flight = self._flying.pop(step)
        self.discarded += 1
        self._recalled.append(flight)
        flight.recall.ask()

    def waste(self) -> Usage:
        """Return what those cost that were recalled and have ended since."""
        ended = [flight for flight in self._recalled if flight.ended]
        self._recalled = [flight for flight in self._recalled if not flight.ended]
        return _wasted(_tasks(ended))

    async def all_waste(self) -> Usage:
        """Wait until all that were recalled have ended, and return what they cost."""
        if self._recalled:
            await asyncio.wait(_tasks(self._recalled))
        return self.waste()

    async def cancelled(self) -> Usage:
        """End all of them at once, and return what is known of their cost."""
        tasks = _tasks([*self._flying.values(), *self._recalled])
        self._flying, self._recalled = {}, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return _wasted(tasks)


def _tasks(flights: Iterable[Flight]) -> list[asyncio.Task[Continuation]]:
    return [task for flight in flights for task in flight.tasks]


def _wasted(tasks: Iterable[asyncio.Task[Continuation]]) -> Usage:
    """The cost of calls that no step took; of one that failed or was cancelled nothing is known."""
    known = [task.result().usage for task in tasks if not task.cancelled() and task.exception() is None]
    whole = in_parallel(known)
    return dataclasses.replace(whole, wasted=whole.decoded, depth=0)
