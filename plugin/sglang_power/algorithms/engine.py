"""The Engine protocol: what an algorithm needs from anything that can continue token sequences.

Implemented by `engines.tabular` (an exact language model) and by `sglang_host.children` (child requests
inside a running server). Algorithms describe the call they want; drivers await it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from sglang_power.algorithms.monitors import RowRule
from sglang_power.errors import ChainAbortedError
from sglang_power.types import Continuation, ProposalLaw, Usage


class Recall:
    """Ends calls that run: they answer with what they have, maybe nothing, cut short.

    An engine that cannot end a call runs it to its end.
    """

    def __init__(self) -> None:
        self.asked = False
        self._listeners: list[Callable[[], None]] = []

    def ask(self) -> None:
        """End the calls that have this handle."""
        self.asked = True
        for listener in self._listeners:
            listener()

    @contextmanager
    def told_to(self, listener: Callable[[], None]) -> Iterator[None]:
        """For the time of a with-block, call `listener` when the calls are to end."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)


@dataclass(frozen=True, slots=True)
class ContinuationCall:
    """Continue `prefix` (generated token ids, prompt excluded) until a stop or `horizon` tokens in all.

    Args:
        prefix: kept tokens; the engine prepends the prompt.
        horizon: largest total number of generated tokens, prefix included; > len(prefix).
        law: the law to draw from.
        seed: the draws of this call are a function of it and of the position.
        forced: begin with these ids instead of drawing, and report the statistics of their rows.
        rules: stop behind the first row at which one of them says so; one of a kind.
        deadline: seconds of `clock.now` after which a proposal may be cut short.
        recall: ends the call from outside; None where nobody will.
    """

    prefix: tuple[int, ...]
    horizon: int
    law: ProposalLaw
    seed: int
    forced: tuple[int, ...] | None = None
    rules: tuple[RowRule, ...] = ()
    deadline: float | None = None
    recall: Recall | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        assert self.horizon > len(self.prefix)

    @property
    def recalled(self) -> bool:
        """Whether nobody waits for the answer any more, but for what it cost."""
        return self.recall is not None and self.recall.asked


@dataclass(frozen=True, slots=True)
class RankedToken:
    """One of the most likely next tokens, with its log probability under the base law, nats."""

    token: int
    log_p: float


class CallAbortedError(ChainAbortedError):
    """The request was aborted during a call, which says what it had.

    Args:
        message: what happened.
        so_far: what had been generated.
    """

    def __init__(self, message: str, so_far: Continuation) -> None:
        self.so_far = so_far
        super().__init__(message)


class Engine(Protocol):
    """Continues token sequences of one prompt."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        """Run one call to its end; cancelling the awaiting task cancels the generation.

        The answer has at least one token, also where it was cut short, so that every loop over calls ends;
        a call that was recalled may have none.
        """
        ...

    def share(self, wanted: int) -> int:
        """Return how many calls may run side by side now without making others wait, from 1 to `wanted`.

        It changes with the load: nothing that a law depends on may depend on it.
        """
        ...


class RankingEngine(Engine, Protocol):
    """An Engine that can also say which tokens are likely to come next."""

    async def most_likely(self, prefix: tuple[int, ...], count: int) -> tuple[list[RankedToken], Usage]:
        """The most likely tokens after `prefix`, best first; fewer where the vocabulary holds fewer."""
        ...
