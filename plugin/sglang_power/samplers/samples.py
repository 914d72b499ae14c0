"""Several draws of one law, read: what `vote` and `best_of` choose from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sglang_power.algorithms.engine import ContinuationCall, Engine
from sglang_power.algorithms.mh import MHConfig
from sglang_power.request import PowerRequest, SamplesRequest
from sglang_power.rng import Key, Purpose
from sglang_power.samplers.base import Tools
from sglang_power.samplers.budgets import Budget, StoppedBy, late
from sglang_power.samplers.candidates import Candidate, Reader, Selection, candidate
from sglang_power.samplers.chain import Chain
from sglang_power.samplers.chain_report import chain_law
from sglang_power.samplers.tasks import finished_of, gather_or_cancel, unless_aborted
from sglang_power.types import ProposalLaw, Tokens, Usage, in_parallel

LIMITS: tuple[StoppedBy, ...] = ("deadline_ms", "max_total_tokens", "max_steps")


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
class Sample:
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


def samples_of(asked: SamplesRequest, tools: Tools) -> Samples:
    """Return what a request draws: chains of its base, or draws of a policy or of the request's own law."""
    base, budget = asked.base, tools.budget
    chain = base if isinstance(base, PowerRequest) else None
    return Samples(
        count=asked.samples,
        horizon=tools.horizon,
        base=tools.request_law(base) if not isinstance(base, PowerRequest) else base.mh_config(tools.horizon),
        tokens_each=budget.max_total_tokens // asked.samples,
        max_steps=None if chain is None else chain.max_steps,
        deadline=budget.deadline,
    )


async def draw(engine: Engine, samples: Samples, key: Key) -> Sample:
    """One sample of the base; `key` is its own."""
    if isinstance(samples.base, MHConfig):
        budget = Budget(samples.tokens_each, samples.max_steps, samples.deadline)
        result = await Chain(engine, samples.base, key, budget).run()
        tokens, exact = result.state.tokens, chain_law(samples.base, result) == "power"
        log_q = samples.base.alpha * float(tokens.log_p.sum()) if exact else None
        return Sample(tokens, result.state.finished, log_q, result.stopped_by, result.usage)
    seed = key.child_seed(0, Purpose.PROPOSAL)
    one = await engine.generate(
        ContinuationCall((), samples.horizon, samples.base, seed, deadline=samples.deadline)
    )
    if one.cut_short:
        return Sample(one.tokens, one.finished, None, late(samples.deadline), one.usage)
    return Sample(one.tokens, one.finished, float(one.tokens.log_q.sum()), "completed", one.usage)


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
        self._draws: list[Sample] = []
        self._aborted = False

    async def candidates(self) -> list[Candidate]:
        """Every sample, read."""
        count = self._samples.count
        keys = [self._key.split(i, count) for i in range(count)]
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

    def with_cost(self, selection: Selection) -> Selection:
        """Return a selection among the samples, with what drawing them cost and what ended that."""
        return dataclasses.replace(selection, usage=self._usage + selection.usage, stopped_by=self.stopped_by)
