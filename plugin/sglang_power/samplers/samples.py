"""Several draws of one law, read: what `vote` and `best_of` choose from."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

from sglang_power import clock
from sglang_power.algorithms.engine import ContinuationCall, Engine
from sglang_power.algorithms.low_confidence import LowConfidence, group_of, lowest_confidence, threshold
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.perfect import PerfectConfig
from sglang_power.request import PerfectRequest, PowerRequest, SamplesRequest
from sglang_power.request.voting import StoppableRequest
from sglang_power.rng import Key, Purpose
from sglang_power.samplers.base import EXACT_LAWS, Outcome, Tools
from sglang_power.samplers.budgets import Budget, StoppedBy, late
from sglang_power.samplers.candidates import Candidate, Reader, Selection, candidate, dropped
from sglang_power.samplers.chain import Chain
from sglang_power.samplers.chain_report import chain_law
from sglang_power.samplers.dropping import Dropping, generate_unless_low
from sglang_power.samplers.perfect_draw import PerfectDraw
from sglang_power.samplers.tasks import finished_of, gather_or_cancel, unless_aborted
from sglang_power.types import ProposalLaw, Tokens, Usage, in_parallel

LIMITS: tuple[StoppedBy, ...] = ("deadline_ms", "max_total_tokens", "max_steps")

HEURISTIC = "confidence says nothing certain of an answer: samples that were ended might have been right"
"""What a response says where samples are ended for their low confidence."""


@dataclass(frozen=True)
class Trialled:
    """A base whose answers are accepted trials.

    Args:
        config: of the trials.
        chain: what makes an answer where no trial does; None where that is an error.
    """

    config: PerfectConfig
    chain: MHConfig | None


@dataclass(frozen=True)
class Samples:
    """What is drawn.

    Args:
        count: answers.
        horizon: L, tokens of an answer.
        base: the law of single draws, the chain that every answer is the end of, or trials.
        tokens_each: cap on the decoded tokens of one answer.
        max_steps: cap on the steps of one chain.
        deadline: seconds of `clock.now`.
        dropping: which single draws are ended for their low confidence; None: none are.
    """

    count: int
    horizon: int
    base: ProposalLaw | MHConfig | Trialled
    tokens_each: int
    max_steps: int | None = None
    deadline: float | None = None
    dropping: Dropping | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample.

    Args:
        tokens, finished: the sequence.
        log_q: log of the density that it was drawn from, up to a constant of the base; None where what
            ended the draw made that another one.
        stopped_by: "completed", or the limit that ended the draw.
        usage: what it cost.
        steps, accepted: of its chain.
        dropped: it was ended for its low confidence.
    """

    tokens: Tokens
    finished: bool
    log_q: float | None
    stopped_by: StoppedBy
    usage: Usage
    steps: int = 0
    accepted: int = 0
    dropped: bool = False


def samples_of(asked: SamplesRequest, tools: Tools, dropping: Dropping | None = None) -> Samples:
    """Return what a request draws: its base, or the request's own law.

    Args:
        asked, tools: of the run.
        dropping: which single draws are ended for their low confidence; None: none are.
    """
    budget = tools.budget
    chain = asked.base if isinstance(asked.base, PowerRequest) else None
    return Samples(
        count=asked.samples,
        horizon=tools.horizon,
        base=_base_of(asked, tools),
        tokens_each=budget.max_total_tokens // asked.samples,
        max_steps=None if chain is None else chain.max_steps,
        deadline=budget.deadline,
        dropping=dropping,
    )


def dropping_of(asked: StoppableRequest, horizon: int) -> Dropping | None:
    """Return which samples of a request are ended for their low confidence."""
    share = asked.drop_below
    return None if share is None else Dropping(share, asked.warmup, group_of(horizon))


def _base_of(asked: SamplesRequest, tools: Tools) -> ProposalLaw | MHConfig | Trialled:
    base, horizon = asked.base, tools.horizon
    if isinstance(base, PerfectRequest):
        chain = None if tools.strict else base.chain.mh_config(horizon)
        return Trialled(base.perfect_config(horizon), chain)
    if not isinstance(base, PowerRequest):
        return tools.request_law(base)
    chain = base.mh_config(horizon)
    return chain if base.method == "chain" else Trialled(base.trial_config(horizon), chain)


async def draw(engine: Engine, samples: Samples, key: Key, rule: LowConfidence | None = None) -> Sample:
    """Draw one sample of the base; `key` is its own, and `rule` ends a single draw of low confidence."""
    base = samples.base
    if not isinstance(base, ProposalLaw):
        return await _own_draw(engine, base, samples, key)
    seed = key.child_seed(0, Purpose.PROPOSAL)
    call = ContinuationCall((), samples.horizon, base, seed, deadline=samples.deadline)
    dropped = False
    if rule is None:
        one = await engine.generate(call)
    else:
        one, dropped = await generate_unless_low(engine, call, rule)
    if dropped:
        return Sample(one.tokens, one.finished, None, "completed", one.usage, dropped=True)
    if one.cut_short:
        return Sample(one.tokens, one.finished, None, late(samples.deadline), one.usage)
    return Sample(one.tokens, one.finished, float(one.tokens.log_q.sum()), "completed", one.usage)


async def _own_draw(engine: Engine, base: MHConfig | Trialled, samples: Samples, key: Key) -> Sample:
    """Draw one answer of a base with a law of its own."""
    budget = Budget(samples.tokens_each, samples.max_steps, samples.deadline)
    if isinstance(base, MHConfig):
        outcome = await _end_of_chain(engine, base, key, budget)
        alpha = base.alpha
    else:
        chain = base.chain
        follows = None if chain is None else functools.partial(_end_of_chain, engine, chain)
        outcome = await PerfectDraw(engine, base.config, key, budget, follows).run()
        alpha = base.config.alpha
    return Sample(
        outcome.tokens,
        outcome.finished,
        alpha * float(outcome.tokens.log_p.sum()) if outcome.law in EXACT_LAWS else None,
        outcome.stopped_by,
        outcome.usage,
        steps=outcome.report.get("steps", 0),
        accepted=outcome.report.get("accepted", 0),
    )


async def _end_of_chain(engine: Engine, config: MHConfig, key: Key, budget: Budget) -> Outcome:
    result = await Chain(engine, config, key, budget).run()
    state, law = result.state, chain_law(config, result)
    steps = {"steps": len(result.infos), "accepted": sum(info.accepted for info in result.infos)}
    return Outcome(state.tokens, state.finished, result.usage, law, {}, result.stopped_by, report=steps)


class SampledSelection:
    """Draws the samples and reads them; subclasses choose.

    Args:
        engine: continues the prompt.
        reader: reads answers.
        samples: what is drawn.
        key: of the run; sample i of run c is keyed by (seed, c * count + i).

    Attributes:
        drawn: the samples so far, read, in their order.
        rounds: how often samples were drawn side by side.
    """

    def __init__(self, engine: Engine, reader: Reader, samples: Samples, key: Key) -> None:
        self._engine, self._reader, self._samples, self._key = engine, reader, samples, key
        self._usage = Usage()
        self._begun = 0
        self.rounds = 0
        self._draws: list[Sample] = []
        self.drawn: list[Candidate] = []
        self._rule: LowConfidence | None = None
        self._aborted = self._late = False

    async def candidates(self) -> list[Candidate]:
        """Every sample, read."""
        return await self.more(self._samples.count)

    async def more(self, count: int) -> list[Candidate]:
        """The next samples, read: fewer where an abort or the deadline ends the run.

        They are drawn at the same time, but none before those have ended that the threshold of low confidence
        is made of.
        """
        new: list[Candidate] = []
        while (size := min(count - len(new), self._side_by_side)) and self._may_go_on():
            new += await self._round(size)
        return new

    @property
    def _side_by_side(self) -> int:
        """How many may begin now."""
        dropping, left = self._samples.dropping, self._samples.count - self._begun
        return (
            left if dropping is None or self._rule is not None else min(left, dropping.warmup - self._begun)
        )

    def _may_go_on(self) -> bool:
        """Whether another round may begin: the first one always may, later ones before abort and deadline."""
        deadline = self._samples.deadline
        self._late |= self._begun > 0 and deadline is not None and clock.now() > deadline
        return not self.is_cut_off

    @property
    def is_cut_off(self) -> bool:
        """Whether an abort or the deadline kept samples from being drawn."""
        return self._aborted or self._late

    async def _round(self, size: int) -> list[Candidate]:
        """Draw and read so many samples at the same time."""
        keys = [self._key.split(i, self._samples.count) for i in range(self._begun, self._begun + size)]
        self._begun += size
        results = await gather_or_cancel(
            [unless_aborted(draw(self._engine, self._samples, key, self._rule)) for key in keys]
        )
        drawn = list(finished_of([*self._draws, *results]).values())[len(self._draws) :]
        self._aborted = len(drawn) < size
        read = await gather_or_cancel([self._read(each) for each in drawn])
        new = [each for each, _ in read]
        self._usage += in_parallel(each.usage for each in drawn) + in_parallel(usage for _, usage in read)
        self._draws += drawn
        self.drawn += new
        self.rounds += 1
        self._warm_up()
        return new

    async def _read(self, drawn: Sample) -> tuple[Candidate, Usage]:
        if drawn.dropped:
            return dropped(self._reader, drawn.tokens, drawn.finished), Usage()
        return await candidate(self._reader, drawn.tokens, drawn.finished)

    def _warm_up(self) -> None:
        """Set the threshold of low confidence once the samples are there that it is made of."""
        dropping = self._samples.dropping
        if dropping is None or self._rule is not None or len(self._draws) < dropping.warmup:
            return
        lowest = [lowest_confidence(each.tokens.entropy, dropping.group) for each in self._draws]
        self._rule = LowConfidence(threshold(lowest, dropping.share), dropping.group)

    @property
    def stopped_by(self) -> StoppedBy:
        """What ended the run; of several limits the one that cuts off most."""
        limits = {one.stopped_by for one in self._draws} | ({"deadline_ms"} if self._late else set())
        return "abort" if self._aborted else next((one for one in LIMITS if one in limits), "completed")

    def with_cost(self, selection: Selection) -> Selection:
        """Return a selection among the samples, with what drawing them cost and what ended that."""
        return dataclasses.replace(
            selection,
            usage=self._usage + selection.usage,
            stopped_by=self.stopped_by,
            notes={**selection.notes, **self._dropped()},
        )

    def _dropped(self) -> dict[str, Any]:
        """What the report says of samples that were ended for their low confidence."""
        dropping, rule = self._samples.dropping, self._rule
        if dropping is None:
            return {}
        return {
            "dropped": {
                "samples": [i for i, each in enumerate(self._draws) if each.dropped],
                "threshold": None if rule is None else rule.threshold,
                "group": dropping.group,
                "heuristic": HEURISTIC,
            }
        }
