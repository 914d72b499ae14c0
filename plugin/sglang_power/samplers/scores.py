"""What answers, and branches that are not answers yet, are compared by.

mean_log_p       log p(y) / |y|, nats per token
log_p            log p(y)
power            alpha * log p(y)
confidence       Delta, the mean margin of the answer tokens (arXiv 2402.10200); whole answers only
self_evaluation  log of the probability that the served model itself calls the answer right
reward           a registered reward

Knows neither SGLang nor HTTP: the host brings what asks the model and what asks for a reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from sglang_power.algorithms.branching import Segment
from sglang_power.samplers.candidates import Candidate, Reader
from sglang_power.samplers.evaluation import Evaluator, judge_notes
from sglang_power.types import Usage

ScoreName = Literal["mean_log_p", "log_p", "power", "confidence", "self_evaluation", "reward"]


class AnswerReward(Protocol):
    """A reward of token sequences; `sglang_host.scoring` has one."""

    async def __call__(self, ids: Sequence[int], finished: bool) -> float | None:
        """R of ids that ended with a stop or did not; None where it is unknown and may be done without."""
        ...

    def report(self) -> dict[str, Any]:
        """What its calls came to, for the response."""
        ...


class Scores:
    """Compares answers and branches by one score.

    Args:
        name: the score.
        reader: turns ids into text.
        alpha: exponent of the power score.
        evaluator: gives self-evaluations.
        reward: gives rewards.
    """

    def __init__(
        self,
        name: ScoreName,
        reader: Reader,
        *,
        alpha: float = 1.0,
        evaluator: Evaluator | None = None,
        reward: AnswerReward | None = None,
    ) -> None:
        assert name != "self_evaluation" or evaluator is not None
        assert name != "reward" or reward is not None
        self.name, self._alpha, self._reader = name, alpha, reader
        self._evaluator, self._reward = evaluator, reward
        self._asked = Usage()

    async def whole(self, candidate: Candidate) -> tuple[float | None, Usage]:
        """The score of an answer, None where it has none, and what finding it cost."""
        if self.name == "confidence":
            return candidate.delta, Usage()
        return await self._score(
            candidate.tokens.ids, candidate.finished, candidate.log_p, len(candidate.tokens)
        )

    async def segment(self, segment: Segment) -> tuple[float | None, Usage]:
        """The score of a branch; its mean log p where the score speaks of whole answers only."""
        return await self._score(segment.ids, segment.finished, segment.log_p, segment.length)

    @property
    def notes(self) -> dict[str, Any]:
        """What the report says of the judge and of the reward, where they were asked."""
        reward = {} if self._reward is None else {"reward": self._reward.report()}
        return {**judge_notes(self._asked), **reward}

    async def _score(
        self, ids: Sequence[int], finished: bool, log_p: float, length: int
    ) -> tuple[float | None, Usage]:
        if self._evaluator is not None:
            value, usage = await self._evaluator.right(self._reader.text(ids, finished))
            self._asked += usage
            return value, usage
        if self._reward is not None:
            return await self._reward(ids, finished), Usage()
        if self.name in ("log_p", "power"):
            return (self._alpha if self.name == "power" else 1.0) * log_p, Usage()
        return log_p / length, Usage()
