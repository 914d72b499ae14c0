"""What answers, and branches that are not answers yet, are compared by.

mean_log_p       log p(y) / |y|, nats per token
power            alpha * log p(y)
confidence       Delta, the mean margin of the answer tokens (arXiv 2402.10200); whole answers only
self_evaluation  log of the probability that the served model itself calls the answer right
reward           a registered reward

A branch is compared by what it holds behind its fork; those of equal length differ in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sglang_power.serving.selection import Candidate, Reader
from sglang_power.serving.tasks import gather_or_cancel
from sglang_power.types import Usage, in_parallel

Score = Literal["mean_log_p", "power", "confidence", "self_evaluation", "reward"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A branch that may go on.

    Args:
        ids: of its whole path, the token to come included.
        log_p: of what is compared, nats.
        length: tokens of what is compared, >= 1.
    """

    ids: tuple[int, ...]
    log_p: float
    length: int


class Scores:
    """Compares answers and branches by one score.

    Args:
        name: the score.
        alpha: exponent of the power score.
        reader: turns ids into text.
    """

    def __init__(self, name: Score, alpha: float, reader: Reader) -> None:
        self.name, self._alpha, self._reader = name, alpha, reader

    async def whole(self, one: Candidate) -> tuple[float | None, Usage]:
        """The score of an answer, None where it has none, and what finding it cost."""
        if self.name == "confidence":
            return one.delta, Usage()
        return self._by_likelihood(one.log_p, len(one.tokens)), Usage()

    async def piece(self, one: Piece) -> tuple[float | None, Usage]:
        """The score of a branch; by mean log p where the score speaks of whole answers."""
        return self._by_likelihood(one.log_p, one.length), Usage()

    def _by_likelihood(self, log_p: float, length: int) -> float:
        return self._alpha * log_p if self.name == "power" else log_p / length


@dataclass(frozen=True, slots=True)
class Scored:
    """The choice of highest score.

    Args:
        chosen: index; the first of equal ones, 0 where none has a score.
        reason: the score's name, or "no_answer".
        scores: per candidate.
    """

    chosen: int
    reason: str
    scores: tuple[float | None, ...]


async def highest(scores: Scores, candidates: Sequence[Candidate]) -> tuple[Scored, Usage]:
    """Score every candidate and take the best."""
    scored = await gather_or_cancel([scores.whole(one) for one in candidates])
    values = [value for value, _ in scored]
    known = [(value, -i) for i, value in enumerate(values) if value is not None]
    chosen = -max(known)[1] if known else 0
    usage = in_parallel(cost for _, cost in scored)
    return Scored(chosen, scores.name if known else "no_answer", tuple(values)), usage
