"""Budgets: what may end a run before its schedule does, and by which name the response says so.

A budget never leaves a client without an answer: tokens that would bring an unfinished state to the
horizon are reserved before any proposal is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sglang_power import clock
from sglang_power.errors import HostError

StoppedBy = Literal[
    "completed", "max_steps", "max_total_tokens", "deadline_ms", "abort", "max_branches", "max_depth"
]
"""The last two are of a branch search whose caps refused forks: its answers end, its search does not."""


def late(deadline: float | None) -> StoppedBy:
    """Return what a response says of a run that its deadline ended; nothing else makes that value.

    Args:
        deadline: of the run, seconds of `clock.now`.

    Raises:
        HostError: it has none, so that something else ended it: to blame the deadline would be a lie.
    """
    if deadline is None:
        raise HostError(
            "a call without a deadline was cut short: the engine ended it for a reason of its own"
        )
    return "deadline_ms"


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one chain.

    Args:
        max_total_tokens: decoded tokens of all calls together.
        max_steps: Metropolis-Hastings steps of all stages together; None means no limit.
        deadline: seconds of `clock.now`; None means no limit.
    """

    max_total_tokens: int
    max_steps: int | None = None
    deadline: float | None = None

    def spent_by(self, *, steps: int, tokens: int, next_tokens: int) -> StoppedBy | None:
        """The limit that forbids one more proposal of at most `next_tokens` tokens, if any."""
        if self.max_steps is not None and steps >= self.max_steps:
            return "max_steps"
        if tokens + next_tokens > self.max_total_tokens:
            return "max_total_tokens"
        return late(self.deadline) if self.expired() else None

    def remaining(self) -> float | None:
        """Seconds until the deadline, 0 behind it; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - clock.now())

    def expired(self) -> bool:
        """True when the deadline has passed."""
        return self.deadline is not None and clock.now() > self.deadline
