"""Drives samplers that draw several answers and return one: `vote` and `best_of`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from sglang_power.algorithms.engine import ContinuationCall, Engine
from sglang_power.algorithms.mh import MHConfig
from sglang_power.answers import Relation, power_weights, uniform_weights
from sglang_power.rng import Key, Purpose
from sglang_power.serving.budgets import Budget
from sglang_power.serving.chain import Chain
from sglang_power.serving.choosing import by_confidence, by_score, by_vote
from sglang_power.serving.scoring import Scores
from sglang_power.serving.selection import (
    Candidate,
    Reader,
    Selection,
    StoppedBy,
    candidate,
    stopped_by,
)
from sglang_power.serving.tasks import finished_of, gather_or_cancel, unless_aborted
from sglang_power.types import FloatArray, ProposalLaw, Tokens, Usage, in_parallel

Weight = Literal["count", "confidence", "power"]


@dataclass(frozen=True)
class Samples:
    """What is drawn.

    Args:
        count: answers.
        horizon: L, tokens of an answer.
        base: the law of single draws, or the chain that every answer is the end of.
        tokens_each: cap on the decoded tokens of one answer.
        max_steps: cap on the steps of one chain.
        deadline: unix time in seconds.
    """

    count: int
    horizon: int
    base: ProposalLaw | MHConfig
    tokens_each: int
    max_steps: int | None = None
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample, and what it cost."""

    tokens: Tokens
    finished: bool
    late: bool
    usage: Usage


async def draw(engine: Engine, samples: Samples, key: Key) -> Draw:
    """One sample of the base; `key` is its own."""
    if isinstance(samples.base, MHConfig):
        budget = Budget(samples.tokens_each, samples.max_steps, samples.deadline)
        result = await Chain(engine, samples.base, key, budget).run()
        late = result.stopped_by == "deadline_ms"
        return Draw(result.state.tokens, result.state.finished, late, result.usage)
    seed = key.child_seed(0, Purpose.PROPOSAL)
    one = await engine.generate(
        ContinuationCall((), samples.horizon, samples.base, seed, deadline=samples.deadline)
    )
    return Draw(one.tokens, one.finished, one.cut_short, one.usage)


class SampledSelection:
    """Draws the samples and reads them; subclasses choose.

    Args:
        engine: continues the prompt.
        reader: reads answers.
        samples: what is drawn.
        key: of the run; sample i of run c is keyed by (seed, c * count + i).
    """

    def __init__(self, engine: Engine, reader: Reader, samples: Samples, key: Key) -> None:
        self._engine, self._reader, self._samples, self._key = engine, reader, samples, key
        self._usage = Usage()
        self._late = self._aborted = False

    async def candidates(self) -> list[Candidate]:
        """Every sample, read."""
        first = self._key.chain * self._samples.count
        keys = [Key(self._key.seed, first + i) for i in range(self._samples.count)]
        results = await gather_or_cancel(
            [unless_aborted(draw(self._engine, self._samples, key)) for key in keys]
        )
        drawn = list(finished_of(results).values())
        self._aborted = len(drawn) < len(keys)
        read = await gather_or_cancel([candidate(self._reader, one.tokens, one.finished) for one in drawn])
        self._usage = in_parallel(one.usage for one in drawn) + in_parallel(usage for _, usage in read)
        self._late = any(one.late for one in drawn)
        return [one for one, _ in read]

    @property
    def stopped_by(self) -> StoppedBy:
        """What ended the run."""
        return stopped_by(self._aborted, self._late)

    def _with_cost(self, selection: Selection) -> Selection:
        """A selection among the samples, with what drawing them cost and what ended that."""
        return dataclasses.replace(selection, usage=self._usage + selection.usage, stopped_by=self.stopped_by)


class BestOf(SampledSelection):
    """The sample of highest score; the first one of several."""

    async def run(self, scores: Scores) -> Selection:
        """The whole run."""
        return self._with_cost(await by_score(await self.candidates(), scores))


class Vote(SampledSelection):
    """The class of equivalent answers of largest weight (Wang et al., arXiv 2203.11171)."""

    async def run(self, relation: Relation, weight: Weight, alpha: float) -> Selection:
        """The whole run.

        Args:
            relation: says which answers are the same.
            weight: of a sample: 1, its Delta, which may be negative, or what makes it a draw of p^alpha.
            alpha: exponent of the power weights.
        """
        candidates = await self.candidates()
        if weight == "confidence":
            return self._with_cost(await by_confidence(candidates, relation, self._key))
        count = len(candidates)
        log_weights = uniform_weights(count) if weight == "count" else self._power_weights(candidates, alpha)
        selection, choice = await by_vote(candidates, relation, log_weights, self._key)
        return self._with_cost(dataclasses.replace(selection, notes={"ess": choice.ess, **selection.notes}))

    def _power_weights(self, candidates: list[Candidate], alpha: float) -> FloatArray:
        """[samples] nats, that make draws of their law draws of p^alpha."""
        base, log_p = self._samples.base, [one.log_p for one in candidates]
        if isinstance(base, MHConfig):  # ends of chains are draws of p^base.alpha, up to its norm
            return power_weights(alpha, log_p, [base.alpha * value for value in log_p])
        return power_weights(alpha, log_p, [float(one.tokens.log_q.sum()) for one in candidates])
