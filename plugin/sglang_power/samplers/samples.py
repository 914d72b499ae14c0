"""Drives samplers that draw several answers and return one: `vote` and `best_of`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from sglang_power.algorithms.engine import ContinuationCall, Engine
from sglang_power.algorithms.mh import MHConfig
from sglang_power.answers import Relation, power_weights, uniform_weights
from sglang_power.errors import UnsupportedError
from sglang_power.rng import Key, Purpose
from sglang_power.samplers.budgets import Budget, StoppedBy
from sglang_power.samplers.candidates import Candidate, Reader, Selection, candidate
from sglang_power.samplers.chain import Chain
from sglang_power.samplers.choosing import by_confidence, by_score, by_vote
from sglang_power.samplers.report import law_of
from sglang_power.samplers.scores import Scores
from sglang_power.samplers.tasks import finished_of, gather_or_cancel, unless_aborted
from sglang_power.types import FloatArray, ProposalLaw, Tokens, Usage, in_parallel

Weight = Literal["count", "confidence", "power"]

LIMITS: tuple[StoppedBy, ...] = ("deadline_ms", "max_total_tokens", "max_steps")

UNWEIGHTED = "no power weight: {} ended it before its law was that of base"


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
    """One sample.

    Args:
        tokens, finished: the sequence.
        log_q: log of the density that it was drawn from, up to a constant of the base; None where what
            ended the draw made that another one.
        stopped_by: "completed", or the limit that ended the draw.
        usage: what it cost.
    """

    tokens: Tokens
    finished: bool
    log_q: float | None
    stopped_by: StoppedBy
    usage: Usage


async def draw(engine: Engine, samples: Samples, key: Key) -> Draw:
    """One sample of the base; `key` is its own."""
    if isinstance(samples.base, MHConfig):
        budget = Budget(samples.tokens_each, samples.max_steps, samples.deadline)
        result = await Chain(engine, samples.base, key, budget).run()
        tokens, exact = result.state.tokens, law_of(samples.base, result) == "power"
        log_q = samples.base.alpha * float(tokens.log_p.sum()) if exact else None
        return Draw(tokens, result.state.finished, log_q, result.stopped_by, result.usage)
    seed = key.child_seed(0, Purpose.PROPOSAL)
    one = await engine.generate(
        ContinuationCall((), samples.horizon, samples.base, seed, deadline=samples.deadline)
    )
    if one.cut_short:
        return Draw(one.tokens, one.finished, None, "deadline_ms", one.usage)
    return Draw(one.tokens, one.finished, float(one.tokens.log_q.sum()), "completed", one.usage)


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
        self._draws: list[Draw] = []
        self._aborted = False

    async def candidates(self) -> list[Candidate]:
        """Every sample, read."""
        first = self._key.chain * self._samples.count
        keys = [Key(self._key.seed, first + i) for i in range(self._samples.count)]
        results = await gather_or_cancel(
            [unless_aborted(draw(self._engine, self._samples, key)) for key in keys]
        )
        self._draws = drawn = list(finished_of(results).values())
        self._aborted = len(drawn) < len(keys)
        read = await gather_or_cancel([candidate(self._reader, one.tokens, one.finished) for one in drawn])
        self._usage = in_parallel(one.usage for one in drawn) + in_parallel(usage for _, usage in read)
        return [one for one, _ in read]

    @property
    def stopped_by(self) -> StoppedBy:
        """What ended the run; of several limits the one that cuts off most."""
        limits = {one.stopped_by for one in self._draws}
        return "abort" if self._aborted else next((one for one in LIMITS if one in limits), "completed")

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
        log_weights = uniform_weights(len(candidates))
        if weight == "power":
            log_weights = self._power_weights(candidates, alpha)
            candidates = [_noted(*one) for one in zip(candidates, self._draws, strict=True)]
        selection, choice = await by_vote(candidates, relation, log_weights, self._key)
        return self._with_cost(dataclasses.replace(selection, notes={"ess": choice.ess, **selection.notes}))

    def _power_weights(self, candidates: list[Candidate], alpha: float) -> FloatArray:
        """[samples] nats, that make draws of their law draws of p^alpha; -inf where that law is unknown.

        Raises:
            UnsupportedError: it is unknown for all of them, or the model's logits were not numbers.
        """
        unknown = [i for i, one in enumerate(self._draws) if one.log_q is None]
        if len(unknown) == len(self._draws):
            problem = f"{self.stopped_by} ended every sample before its law was that of base"
            raise UnsupportedError("weight", "power", problem, "Allow more, or weigh samples by count")
        log_q = [one.log_q or 0.0 for one in self._draws]
        log_weights = power_weights(alpha, [one.log_p for one in candidates], log_q)
        log_weights[unknown] = -math.inf
        return log_weights


def _noted(one: Candidate, drawn: Draw) -> Candidate:
    """The sample; where it has no power weight, it says why."""
    if drawn.log_q is not None:
        return one
    note = UNWEIGHTED.format(drawn.stopped_by)
    return dataclasses.replace(one, note=note if one.note is None else f"{one.note}; {note}")
