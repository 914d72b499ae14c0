"""Decoded tokens per minute of one key: a bucket per key, which fills steadily and may be overdrawn.

What an answer costs is known when it has been generated, so a request begins while its key has anything
left, and what it then takes is withdrawn afterwards, below zero if need be; the next one waits until that
has been made up for. Libraries for rate limits refuse what would overdraw, or count by the wall clock, which
may jump. Pure: the time is an argument, in seconds of a clock that only goes forward. Knows neither requests
nor HTTP.
"""

from __future__ import annotations

SWEPT_FROM = 1024
"""Keys that are remembered before full buckets are looked for: a full one says what a forgotten one says."""


class Allowance:
    """What is left to each key.

    Args:
        per_minute: tokens that flow into each bucket in a minute, and the most that one holds.
    """

    def __init__(self, per_minute: int) -> None:
        self._most, self._per_s = float(per_minute), per_minute / 60
        self._left: dict[str, tuple[float, float]] = {}  # key -> tokens, when they were counted
        self._sweep_at = SWEPT_FROM

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._left)

    def wait_s(self, key: str, now: float) -> float:
        """Return the seconds until a key has a token left; 0 where it has one now."""
        return max(0.0, (1.0 - self._tokens(key, now)) / self._per_s)

    def spend(self, key: str, tokens: int, now: float) -> None:
        """Withdraw tokens that were decoded for a key."""
        self._left[key] = self._tokens(key, now) - tokens, now
        if len(self._left) >= self._sweep_at:
            self._forget_full(now)

    def _tokens(self, key: str, now: float) -> float:
        left, counted_at = self._left.get(key, (self._most, now))
        return min(self._most, left + max(0.0, now - counted_at) * self._per_s)

    def _forget_full(self, now: float) -> None:
        """Forget keys that have all that a new one has; a bucket in use stays, whoever comes meanwhile."""
        self._left = {key: left for key, left in self._left.items() if self._tokens(key, now) < self._most}
        self._sweep_at = max(SWEPT_FROM, 2 * len(self._left))
