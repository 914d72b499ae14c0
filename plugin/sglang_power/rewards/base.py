"""What a reward is, and the check that every score passes.

Owns the protocol, the adapter for foreign functions and `NamedReward`, the only form in which samplers
meet a reward. Knows no HTTP and no failure policy (`scorer` applies it).
"""

from __future__ import annotations

import asyncio
import inspect
import math
import numbers
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from sglang_power.errors import RewardError
from sglang_power.fields import MAX_REWARD

OnError = Literal["fail", "without"]
"""What a failed call does: "fail" the request, or score the answer "without" the reward, visibly."""

REMEDY = "Tell the operator of this server, or send the request without the reward"


class Reward(Protocol):
    """Scores whole answers."""

    @property
    def upper_bound(self) -> float | None:
        """No score is ever above it; None where no bound is known."""
        ...

    async def score(self, prompt: str, answer: str) -> float:
        """R(prompt, answer), finite; the higher the better."""
        ...


@dataclass(frozen=True, slots=True)
class NamedReward:
    """A reward as requests name it.

    Args:
        name: what requests write.
        reward: what scores.
        on_error: what a failed call does.
    """

    name: str
    reward: Reward
    on_error: OnError = "fail"

    @property
    def upper_bound(self) -> float | None:
        """The bound that the reward declares."""
        return self.reward.upper_bound

    async def score(self, prompt: str, answer: str) -> float:
        """R(prompt, answer).

        Args:
            prompt, answer: text.

        Raises:
            RewardError: no score, one that is not finite, or one above the declared bound.
        """
        value, bound = await self.reward.score(prompt, answer), self.upper_bound
        if not isinstance(value, numbers.Real):
            raise RewardError(self.name, f"scored {value!r:.80}, which is not a number", REMEDY)
        if not abs(as_float(value)) <= MAX_REWARD:  # NaN compares as false
            problem = f"scored {value!r:.80}, which is not finite, or larger than {MAX_REWARD:g}"
            raise RewardError(self.name, problem, REMEDY)
        if bound is not None and value > bound:
            raise RewardError(self.name, f"scored {value}, above its declared upper_bound {bound}", REMEDY)
        return float(value)


def as_float(value: numbers.Real) -> float:
    """Return a number as a float; infinity where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


@dataclass(frozen=True, slots=True)
class FunctionReward:
    """A reward made of a foreign function (prompt, answer) -> number.

    A plain function runs in a thread, a coroutine function on the event loop. A thread cannot be
    interrupted: one whose request has ended runs to its end, unheard.

    Args:
        name: for errors.
        function: plain or asynchronous.
        upper_bound: see Reward.
    """

    name: str
    function: Callable[[str, str], object]
    upper_bound: float | None = None

    async def score(self, prompt: str, answer: str) -> float:
        """Return what the function says of an answer.

        Raises:
            RewardError: the function raised.
        """
        if _is_asynchronous(self.function):
            result = self._call(prompt, answer)
        else:
            result = await asyncio.to_thread(self._call, prompt, answer)
        if inspect.isawaitable(result):
            with _foreign(self.name):
                result = await result
        return result  # type: ignore[return-value]  # NamedReward checks it

    def _call(self, prompt: str, answer: str) -> object:
        with _foreign(self.name):  # inside of the thread, since no future can carry StopIteration
            return self.function(prompt, answer)


def _is_asynchronous(function: Callable[[str, str], object]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


@contextmanager
def _foreign(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise RewardError(name, f"raised {type(error).__name__}: {error}", REMEDY) from error
