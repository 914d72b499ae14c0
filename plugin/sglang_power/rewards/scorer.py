"""One request's calls of its reward: cached, counted, under the failure policy.

on_error="fail": a failed call fails the request with the RewardError.
on_error="without": that answer has no score; what this means is the sampler's matter, and the report tells.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import Any

from sglang_power.errors import RewardError
from sglang_power.rewards.base import NamedReward

logger = logging.getLogger("sglang_power")


class Scorer:
    """Scores the answers of one request; equal answers cost one call, at the same time or later.

    Args:
        reward: what scores, and what a failure does.
    """

    def __init__(self, reward: NamedReward) -> None:
        self._reward = reward
        self._scores: dict[tuple[str, str], float | None] = {}
        self._locks: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._calls = self._failed = 0
        self._reason: str | None = None

    async def score(self, prompt: str, answer: str) -> float | None:
        """R(prompt, answer); None where the call failed and the policy is to do without.

        Args:
            prompt, answer: text.

        Raises:
            RewardError: the call failed and the policy is to fail.
        """
        asked = prompt, answer
        async with self._locks[asked]:
            if asked not in self._scores:
                self._scores[asked] = await self._call(prompt, answer)
        return self._scores[asked]

    async def _call(self, prompt: str, answer: str) -> float | None:
        self._calls += 1
        try:
            return await self._reward.score(prompt, answer)
        except RewardError as error:
            self._failed += 1
            self._reason = self._reason or str(error)
            if self._reward.on_error == "fail":
                raise
            logger.warning("an answer is scored without its reward: %s", error)
            return None

    def report(self) -> dict[str, Any]:
        """For the response: the reward's name, calls, failed ones, and why the first of them failed."""
        return {
            "name": self._reward.name,
            "calls": self._calls,
            "failed": self._failed,
            "reason": self._reason,
        }
